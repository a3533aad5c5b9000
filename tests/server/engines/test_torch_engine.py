"""The engine in this process, on a tiny model: a row alone and in a batch, seeds, banks, failures."""

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from blora.decision.abstention import Policy
from blora.decision.stopping import draws_used
from blora.disk.digests import canonical_digest
from blora.errors import AdapterError, BloraError, ConfigError, NumericalError, PromptError
from blora.inference.branches import Branches
from blora.posterior.bank import SampleBank
from blora.posterior.draws import Draws, Factors
from blora.server.engines.protocol import Stop
from tests.server.engines.asking import CHOICES, QUESTIONS, Asking, calibrated, loaded, settings


@pytest.mark.processor
async def test_loading_tells_what_there_is(folder: Path) -> None:
    async with loaded(settings(folder)) as (_, state):
        assert (state.model.name, state.model.device, state.model.dtype) == ("tiny", "cpu", "float32")
        one, two = state.adapters
        assert (one.name, two.name) == ("one", "two")
        assert one.digest != two.digest
        assert one.policy is None
        assert two.policy is not None
        assert two.policy.min_confidence == 0.5
        assert (one.bank.n_samples, one.bank.seed, one.bank.digest) == (4, 7, one.digest)


async def test_probabilities_are_distributions_over_the_choices(asking: Asking) -> None:
    probs = await asking.probabilities("why")
    assert probs.shape == (4, 3)
    assert torch.allclose(probs.sum(-1), torch.ones(4, dtype=torch.float64), atol=1e-12)
    assert probs.std(0).max() > 1e-4  # the draws differ


async def test_every_draw_is_recalibrated_as_the_adapter_says(asking: Asking) -> None:
    job = await asking.job("why")
    sampling = dataclasses.replace(job.handle.config.sampling, temperature=3.0, lapse=0.12)
    handle = dataclasses.replace(job.handle, config=dataclasses.replace(job.handle.config, sampling=sampling))
    [plain], [tempered] = [await asking.run([each]) for each in (job, dataclasses.replace(job, handle=handle))]
    flatter = plain ** (1 / 3)
    assert torch.allclose(tempered, 0.88 * flatter / flatter.sum(-1, keepdim=True) + 0.04, atol=1e-9)
    assert (tempered - plain).abs().max() > 0.01


async def test_another_scoring_than_the_adapters_is_not_recalibrated(asking: Asking) -> None:
    job = await asking.job("why", scoring="label")
    sampling = dataclasses.replace(job.handle.config.sampling, temperature=3.0, lapse=0.12)
    handle = dataclasses.replace(job.handle, config=dataclasses.replace(job.handle.config, sampling=sampling))
    [plain], [same] = [await asking.run([each]) for each in (job, dataclasses.replace(job, handle=handle))]
    assert torch.allclose(plain, same, atol=1e-6)


async def test_one_row_alone_equals_the_same_row_batched(asking: Asking) -> None:
    jobs = [await asking.job(question, choices=CHOICES[: 2 + i % 2]) for i, question in enumerate(QUESTIONS)]
    together = await asking.run(jobs)
    for job, batched in zip(jobs, together, strict=True):
        [alone] = await asking.run([job])
        assert batched.shape == alone.shape
        assert torch.allclose(batched, alone, atol=1e-5)


async def test_without_a_seed_the_bank_answers_and_draws_nest(asking: Asking) -> None:
    few, bank, more = [await asking.probabilities("why", n_samples=n) for n in (2, 4, 6)]
    assert torch.allclose(few, bank[:2], atol=1e-5)
    assert torch.allclose(bank, more[:4], atol=1e-5)


async def test_the_banks_own_seed_is_the_bank(asking: Asking) -> None:
    named = await asking.probabilities("why", seed=7)
    assert torch.allclose(named, await asking.probabilities("why"), atol=1e-6)


async def test_a_seed_draws_afresh_and_again(asking: Asking) -> None:
    first, again, other = [await asking.probabilities("why", seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(first, again)
    assert not torch.allclose(first, other, atol=1e-4)


async def test_adapters_do_not_mix_when_asked_at_once(asking: Asking) -> None:
    alone = {name: await asking.probabilities("why", adapter=name) for name in ("one", "two")}
    assert not torch.allclose(alone["one"], alone["two"], atol=1e-4)
    names = ("one", "two") * 10
    for name, probs in zip(
        names, await asyncio.gather(*(asking.probabilities("why", adapter=name) for name in names)), strict=True
    ):
        assert torch.equal(probs, alone[name])


async def test_rows_of_different_adapters_and_seeds_share_a_forward_pass(asking: Asking) -> None:
    asked = [(adapter, seed) for adapter in ("one", "two") for seed in (None, 3)]
    jobs = [await asking.job(f"why {i}", adapter=a, seed=seed) for i, (a, seed) in enumerate(asked * 2)]
    assert len({job.group for job in jobs}) == 1
    together = await asking.run(jobs)
    for job, probs in zip(jobs, together, strict=True):
        [alone] = await asking.run([job])
        assert torch.allclose(probs, alone, atol=1e-5)
    assert asking.one.digest != asking.two.digest


async def test_draws_stop_where_the_decision_is_settled_and_are_the_first_of_all(asking: Asking) -> None:
    stop = Stop(Policy(min_confidence=0.999), 0.5)
    full = [await asking.job("x" * i, n_samples=16) for i in range(1, 25)]
    jobs = [dataclasses.replace(job, stop=stop if i % 4 else None) for i, job in enumerate(full)]
    for job, every, probs in zip(jobs, await asking.run(full), await asking.run(jobs), strict=True):
        expected = draws_used(every[:, None], stop.policy, stop.error) if job.stop else 16
        assert len(probs) == expected
        assert torch.allclose(probs, every[: len(probs)], atol=1e-5)
    assert len({len(probs) for probs in await asking.run(jobs)}) > 1


async def test_jobs_that_may_stop_early_are_planned_by_their_first_look(asking: Asking) -> None:
    job = await asking.job("why", n_samples=16)
    early = dataclasses.replace(job, stop=Stop(Policy(min_confidence=0.5), 0.01))
    assert (job.at_once, early.at_once) == (16, 4)
    assert job.group != early.group


async def test_prompts_that_begin_alike_get_what_they_get_without_a_memory(folder: Path) -> None:
    head = "the same long instructions before every question: "
    stop = Stop(Policy(min_confidence=0.999), 0.5)
    answers = []
    for chosen in (settings(folder), settings(folder, prefix_cache_mib=0)):
        async with loaded(chosen) as (engine, state):
            asking = Asking(engine, state)
            jobs = [
                await asking.job(head + text, adapter=adapter, stop=stop)
                for text in (*QUESTIONS, "what else?")
                for adapter in ("one", "two")
            ]
            jobs.append(await asking.job("another beginning", adapter="two", stop=stop))
            answers.append([await asking.run(jobs), await asking.run(jobs[::2])])
    remembered, read = answers
    for some, same in zip(remembered, read, strict=True):
        for probs, expected in zip(some, same, strict=True):
            assert probs.shape == expected.shape
            assert torch.allclose(probs, expected, atol=1e-5)


async def test_an_adapter_that_overflows_is_named_and_its_neighbour_can_be_asked_again(asking: Asking) -> None:
    bad = dataclasses.replace(asking.two, digest="sha256:bad", bank=poisoned(asking.two.bank))
    jobs = [await asking.job("why"), dataclasses.replace(await asking.job("why", adapter="two"), handle=bad)]
    with pytest.raises(NumericalError, match="from adapter 'two'"):
        await asking.run(jobs)
    [alone] = await asking.run(jobs[:1])
    assert alone.isfinite().all()


def poisoned(bank: SampleBank) -> SampleBank:
    factors = {name: Factors(f.A * torch.nan, f.B) for name, f in bank.draws.factors.items()}
    return dataclasses.replace(bank, draws=Draws(factors, bank.draws.scaling, bank.n_samples))


async def test_many_questions_are_packed_at_once(asking: Asking) -> None:
    jobs = await asyncio.gather(*(asking.job("x" * i) for i in range(1, 60)))
    lengths = [job.row.prompt_tokens for job in jobs]
    assert lengths == list(range(lengths[0], lengths[0] + 59))


async def test_messages_and_labels_pack_too(asking: Asking) -> None:
    probs = await asking.probabilities("", prompt=None, messages=[{"role": "user", "content": "hi"}], scoring="label")
    assert probs.shape == (4, 3)


async def test_what_cannot_be_packed_names_its_field(asking: Asking) -> None:
    with pytest.raises(PromptError) as info:
        await asking.job("x" * 1000)
    assert info.value.param == "prompt"


@pytest.fixture
def broken_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Branches.score
    monkeypatch.setattr(Branches, "score", lambda *args, **options: real(*args, **options) * torch.nan)


@pytest.mark.usefixtures("broken_scores")
async def test_a_model_without_numbers_does_not_become_ready(folder: Path) -> None:
    with pytest.raises(NumericalError, match="NaN or infinity from adapter 'one'"):
        async with loaded(settings(folder)):
            pass


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"adapters": ()}, ConfigError, "no adapter is given: pass --adapters"),
        ({"adapters": ("/no/where",)}, AdapterError, "/no/where, expected an existing directory"),
        ({"base_model": "/no/where/else"}, BloraError, "/no/where/else"),
        ({"dtype": "float7"}, BloraError, "float7"),
        ({"device": "abacus"}, BloraError, "abacus"),
    ],
)
async def test_what_cannot_be_loaded_is_told(
    folder: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        async with loaded(settings(folder).model_copy(update=change)):
            pass


async def test_a_name_is_that_of_the_folder_unless_given(folder: Path) -> None:
    chosen = settings(folder).model_copy(update={"adapters": (str(folder / "one"), f"mine={folder / 'two'}")})
    async with loaded(chosen) as (_, state):
        assert [handle.name for handle in state.adapters] == ["one", "mine"]


async def test_an_adapter_that_comes_later_answers_as_one_that_was_there_from_the_start(
    folder: Path, asking: Asking
) -> None:
    async with loaded(settings(folder, "one")) as (engine, state):
        alone = Asking.__new__(Asking)
        alone = Asking(engine, state)
        before = await alone.probabilities("why")
        later = alone.handles["later"] = await engine.load_adapter(folder / "two", "later")
        assert (later.name, later.digest) == ("later", asking.two.digest)
        expected = await asking.probabilities("why", adapter="two")
        assert torch.allclose(await alone.probabilities("why", adapter="later"), expected, atol=1e-5)
        assert torch.allclose(await alone.probabilities("why"), before, atol=1e-5)
        await engine.forget(later)
        assert later not in engine._handles
        assert torch.allclose(await alone.probabilities("why", adapter="later"), expected, atol=1e-5)


async def test_what_is_no_adapter_is_not_loaded_later_either(asking: Asking, tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="expected an existing directory"):
        await asking.engine.load_adapter(tmp_path / "nowhere", "later")
    assert (await asking.probabilities("why")).isfinite().all()


async def test_the_pass_that_proves_an_adapter_is_no_longer_than_a_pass_may_be(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    passes = list[int]()
    real = Branches.score

    def counted(self: Branches, rows: Any, start: int, stop: int, **options: Any) -> torch.Tensor:
        passes.append(stop - start)
        return real(self, rows, start, stop, **options)

    monkeypatch.setattr(Branches, "score", counted)
    async with loaded(settings(folder, "one", max_batch_tokens=100)) as (engine, _):
        await engine.probe()
    assert passes == [2, 2]  # of four draws: 44 tokens each


async def test_an_adapter_whose_choices_exceed_a_pass_is_refused(folder: Path) -> None:
    with pytest.raises(AdapterError, match=r"take \d+ tokens with a short question, expected at most 30: shorten them"):
        async with loaded(settings(folder, "one", max_batch_tokens=30)):
            pass


async def test_draws_beyond_the_cap_are_refused_before_they_are_made(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(SampleBank, "draw")
    with pytest.raises(ConfigError, match="adapter 'one' with 4 draws, expected at most 3: raise --n-samples-cap"):
        async with loaded(settings(folder, "one", n_samples_cap=3)):
            pass


async def test_a_calibration_is_served_with_its_adapter(calibratable: Path) -> None:
    await calibrated(calibratable)
    async with loaded(settings(calibratable)) as (_, state):
        one, two = state.adapters
        assert one.calibration is not None
        assert (one.calibration.binding.adapter_digest, one.calibration.binding.seed) == (one.digest, 7)
        assert two.calibration is None


def loosened(text: str) -> str:
    """A calibration file with another threshold, under a digest of its own."""
    raw = json.loads(text.replace('"threshold": 0.7', '"threshold": 0.71'))
    del raw["digest"]
    return json.dumps(raw | {"digest": canonical_digest(raw)})


async def test_a_threshold_edited_in_the_file_changes_the_calibration_digest_alone(calibratable: Path) -> None:
    await calibrated(calibratable)
    file = calibratable / "one" / "calibration.json"
    before = file.read_text()
    found = []
    for text in (
        before,
        json.dumps(json.loads(before), indent=3),
        loosened(before),
    ):
        file.write_text(text)
        async with loaded(settings(calibratable, "one")) as (_, state):
            found.append(state.adapters[0])
    as_made, laid_out, edited = found
    assert len({handle.digest for handle in found}) == 1
    assert as_made.calibration_digest == laid_out.calibration_digest != edited.calibration_digest


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"adapter_digest": "sha256:" + "e" * 64}, "calibration for adapter_digest sha256:eeee"),
        ({"dtype": "bfloat16"}, "calibration for dtype bfloat16 in .* expected float32"),
        ({"n_samples": 8}, "calibration for n_samples 8 in .* expected 4"),
        ({"seed": 1}, "calibration for seed 1 in .* expected 7"),
        ({"scoring": "label"}, "calibration for scoring label in .* expected text"),
        ({"temperature": 2.0}, "calibration for temperature 2.0 in .* expected 1.0"),
        ({"lapse": 0.1}, "calibration for lapse 0.1 in .* expected 0.0"),
    ],
)
async def test_a_calibration_for_something_else_keeps_the_server_from_starting(
    calibratable: Path, change: dict[str, Any], message: str
) -> None:
    await calibrated(calibratable, **change)
    with pytest.raises(AdapterError, match=message):
        async with loaded(settings(calibratable)):
            pass
