"""A served adapter with a head and a familiarity: the same familiarity alone, in batches, after prefixes and over HTTP."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
import torch

import blora
from blora.adapter import save_adapter
from blora.base_model import load_base_model
from blora.config import AdapterConfig, HeadConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.decision.guesses import SHARE
from blora.errors import PromptError
from blora.inference.batches import padded_tokens
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow, pack
from blora.inference.prefix import HeadPrefix
from blora.inference.reading import read_rows
from blora.posterior.decision_head import Features, HeadPosterior
from blora.posterior.draws import NO_LORA
from blora.posterior.posterior import Posterior
from blora.scores import mutual_information
from blora.server.app import create_app
from blora.server.engines.protocol import Job, Outcome
from blora.training.head.familiarity import fit_familiarity
from blora.training.head.features import read_features
from blora.training.rows.packed import LabelledRow
from tests.heads import LABELS, head_of
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import Asking, loaded, settings

# A p-value of n reference rows is a multiple of 1 / (n + 1), which is far more than this.
TOLERANCE = 1e-3
BEGINNING = "the same long instructions before every question: "
QUESTIONS = ("red 01", "is it blue 77?", "ZZZZ %%% @@@@ 0000", "why", BEGINNING + "red 02", BEGINNING + "blue 03")
OTHER_CHOICES = ("left", "right")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model, an adapter `one` with a linear head and a familiarity, `two` without, `three` with a pointer head."""
    root = tmp_path_factory.mktemp("head")
    tiny_model().save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    base = load_base_model(str(root / "tiny"), device="cpu", dtype="float32")
    head = head_of(HeadConfig(depths=(1, 2), n_states=64, n_directions=4, n_grams=8), len(LABELS))
    posterior = HeadPosterior(head, Posterior({}, PosteriorConfig(method="lora"), seed=0))
    prompt = PromptConfig(choices=LABELS, readout="linear", choice_end="newline")
    asked = [f"{colour} {i:02}" for i in range(40) for colour in ("red", "is it blue?")]
    rows = [pack(base.tokenizer, prompt=text, choices=LABELS, config=prompt, max_length=200) for text in asked]
    read = partial(read_features, base.model, lora=NO_LORA, about="reading")
    states = read([LabelledRow(row, 0) for row in rows], head.config).prompt
    assert states is not None
    familiarity = fit_familiarity(head.config.depths, states[::2], states[1::2]).familiarity
    config = HeadConfig(depths=(1, 2), n_states=64, n_directions=4, n_products=(3, 2))
    pointer = HeadPosterior(head_of(config, 1), posterior.lora)
    pointing = PromptConfig(readout="pointer", choice_end="newline")
    rows = [
        pack(base.tokenizer, prompt=text, choices=LABELS[: 2 + i // 2 % 2], config=pointing, max_length=200)
        for i, text in enumerate(asked)
    ]
    found = read([LabelledRow(row, 0) for row in rows], config)
    assert found.prompt is not None
    first, last = found.at(range(60)).choices(), found.at(range(60, len(rows))).choices()
    assert first is not None
    assert last is not None
    own = first[0], last
    of_choices = fit_familiarity(config.depths, found.prompt[:60], found.prompt[60:], choices=own).familiarity
    beyond = float(of_choices.reference.max())
    of_choices = replace(of_choices, config=replace(of_choices.config, guesses_beyond=beyond))
    for name, heads, asks, own in (
        ("one", posterior, prompt, familiarity),
        ("two", posterior, prompt, None),
        ("three", pointer, pointing, of_choices),
    ):
        config = AdapterConfig(
            base_model=base.ref,
            target_modules=(),
            modules={},
            posterior=posterior.lora.config,
            prompt=asks,
            sampling=SamplingConfig(n_samples=4, seed=7),
            head=heads.head.config,
            familiarity=own.config if own is not None else None,
        )
        save_adapter(root / name, heads, config, base, own)
    return root


async def jobs_of(asking: Asking, questions: Sequence[str] = QUESTIONS, **more: Any) -> list[Job]:
    return [await asking.job(question, **{"choices": LABELS, **more}) for question in questions]


def check_same(found: Sequence[Outcome], expected: Sequence[Outcome]) -> None:
    for one, other in zip(found, expected, strict=True):
        assert one.familiarity is not None
        assert one.familiarity == pytest.approx(other.familiarity, abs=TOLERANCE)
        torch.testing.assert_close(one.probs, other.probs, rtol=0, atol=TOLERANCE)


async def alone(asking: Asking, jobs: Sequence[Job]) -> list[Outcome]:
    return [outcome for job in jobs for outcome in await asking.engine.run([job])]


@pytest.mark.parametrize("choices", [LABELS, OTHER_CHOICES])
async def test_batches_and_prefixes_give_the_same_familiarity_as_alone(
    folder: Path, asking: Asking, choices: tuple[str, ...]
) -> None:
    async with loaded(settings(folder, prefix_cache_mib=0)) as (engine, state):
        plain = Asking(engine, state)
        expected = await alone(plain, await jobs_of(plain, choices=choices))
        check_same(await engine.run(await jobs_of(plain, choices=choices)), expected)
    jobs = await jobs_of(asking, choices=choices)
    first, second = await asking.engine.run(jobs), await asking.engine.run(jobs)
    assert {outcome.cached_tokens for outcome in first} == {0}
    shared = [question.startswith(BEGINNING) for question in QUESTIONS]
    assert [outcome.cached_tokens > 0 for outcome in second] == shared
    for found in (first, second, await alone(asking, jobs)):
        check_same(found, expected)
    assert len({outcome.familiarity for outcome in expected}) > 1


async def test_foreign_choices_leave_the_familiarity_of_a_question_as_it_is(asking: Asking) -> None:
    own, other = await jobs_of(asking), await jobs_of(asking, choices=OTHER_CHOICES)
    assert ({job.kind for job in own}, {job.kind for job in other}) == ({"head"}, {"below head"})
    by_head, by_model = await asking.engine.run(own), await asking.engine.run(other)
    assert [outcome.familiarity for outcome in by_model] == pytest.approx(
        [outcome.familiarity for outcome in by_head], abs=TOLERANCE
    )


async def test_a_question_that_brings_its_choices_is_as_familiar_as_they_are(folder: Path) -> None:
    offered = [LABELS, LABELS[:2], OTHER_CHOICES, (*OTHER_CHOICES, "ZZZZ %%% @@@@"), ("####", "%%%% &&&& 0101")]
    async with loaded(settings(folder, "three")) as (engine, state):
        asking = Asking(engine, state)
        jobs = [await asking.job("red 01", choices=choices, adapter="three") for choices in offered]
        expected = await alone(asking, jobs)
        check_same(await engine.run(jobs), expected)  # beside questions with more or fewer choices
        turned = await alone(asking, [await asking.job("red 01", choices=LABELS[::-1], adapter="three")])
    familiar = [outcome.familiarity or 0.0 for outcome in expected]
    assert min(familiar[:2]) > 0.1 > max(familiar[2:]) > 0
    assert turned[0].familiarity == pytest.approx(familiar[0], abs=TOLERANCE)
    assert [outcome.guesses for outcome in expected] == pytest.approx([0, 0, SHARE, SHARE, SHARE])
    model = blora.load(folder / "three", base_model=folder / "tiny", dtype="float32")
    for choices, known, outcome in zip(offered, familiar, expected, strict=True):
        answer = model.predict("red 01", choices=choices)
        assert answer.familiarity == pytest.approx(known, abs=TOLERANCE)
        shown = torch.tensor([one.probability for one in answer.probabilities])
        spread = outcome.probs.std(0, correction=0).float()  # of the draws, as the mutual information
        torch.testing.assert_close(
            torch.tensor([one.std for one in answer.probabilities]), spread, atol=TOLERANCE, rtol=0
        )
        even = (1 - outcome.guesses) * outcome.probs.mean(0) + outcome.guesses / len(choices)
        torch.testing.assert_close(even.float(), shown, atol=TOLERANCE, rtol=0)
        information = float(mutual_information(outcome.probs[:, None]))
        assert answer.mutual_information == pytest.approx(information, abs=TOLERANCE)


@pytest.mark.parametrize("choices", [LABELS, OTHER_CHOICES])
async def test_questions_have_the_same_outcome_in_process(folder: Path, choices: tuple[str, ...]) -> None:
    model = blora.load(folder / "one", base_model=folder / "tiny", dtype="float32")
    async with loaded(settings(folder)) as (engine, state):
        served = await engine.run(await jobs_of(Asking(engine, state), choices=choices))
    for outcome, answer in zip(served, model.predict(QUESTIONS, choices=choices), strict=True):
        found = {one.choice: one.probability for one in answer.probabilities}
        assert outcome.probs.mean(0).tolist() == pytest.approx([found[choice] for choice in choices], abs=TOLERANCE)
        assert outcome.familiarity == pytest.approx(answer.familiarity, abs=TOLERANCE)


async def test_fresh_draws_leave_the_familiarity_of_a_question_as_it_is(asking: Asking) -> None:
    bank, fresh = [await asking.engine.run(await jobs_of(asking, seed=seed)) for seed in (None, 3)]
    assert [one.familiarity for one in fresh] == pytest.approx([one.familiarity for one in bank], abs=TOLERANCE)


async def test_an_adapter_without_a_familiarity_has_none_beside_one_that_has(asking: Asking) -> None:
    [job], [other] = await jobs_of(asking, ["why"]), await jobs_of(asking, ["why"], adapter="two")
    assert job.group == other.group
    one, two = await asking.engine.run([job, other])
    assert one.familiarity is not None
    assert two.familiarity is None


async def test_adapters_that_read_the_same_share_a_pass_over_each_text(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [job for name in ("one", "two") for job in await jobs_of(asking, QUESTIONS[:3], adapter=name)]
    jobs += await jobs_of(asking, QUESTIONS[:1], seed=5)
    expected = await alone(asking, jobs)
    sizes = []

    def counting(model: Any, rows: Sequence[Any], *more: Any) -> Features:
        sizes.append(len(rows))
        return read_rows(model, rows, *more)

    monkeypatch.setattr("blora.server.engines.readings.read_rows", counting)
    together = await asking.engine.run(jobs)
    assert sizes == [3]
    for job, found, by_itself in zip(jobs, together, expected, strict=True):
        torch.testing.assert_close(found.probs, by_itself.probs, rtol=0, atol=TOLERANCE)
        assert (found.familiarity is None) == (job.handle.name == "two")


async def test_letters_in_place_of_the_choices_of_a_pointer_head_are_scored_by_the_model_with_a_familiarity(
    folder: Path,
) -> None:
    async with loaded(settings(folder, "three")) as (engine, state):
        jobs = await jobs_of(Asking(engine, state), adapter="three", scoring="label")
        found, model = await engine.run(jobs), engine._loaded_base().model
        check_same(found, await alone(Asking(engine, state), jobs))
        expected = score_all(model, [cast(PackedRow, job.row) for job in jobs], None, max_batch_tokens=4096)[0].exp()
    for outcome, probs in zip(found, expected, strict=True):
        torch.testing.assert_close(outcome.probs.mean(0).float(), probs, rtol=0, atol=TOLERANCE)


async def test_questions_to_a_pointer_head_with_other_draws_and_more_choices_share_a_batch(folder: Path) -> None:
    async with loaded(settings(folder, "three")) as (engine, state):
        asking = Asking(engine, state)
        few = await jobs_of(asking, adapter="three", choices=OTHER_CHOICES)
        many = await jobs_of(asking, adapter="three", choices=("a", "b", "c", "d"), seed=3)
        check_same(await engine.run([*few, *many]), await alone(asking, [*few, *many]))


async def test_a_pass_over_many_questions_stays_within_the_tokens_of_a_batch(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    most = 256
    asked = [f"{BEGINNING}{number:02}" for number in range(12)] * 2
    sizes = []

    def counting(model: Any, rows: Sequence[PackedRow], config: Any, lora: Any, prefix: HeadPrefix | None) -> Features:
        sizes.append(padded_tokens([row.after(len(prefix.tokens) if prefix is not None else 0) for row in rows]))
        return read_rows(model, rows, config, lora, prefix)

    monkeypatch.setattr("blora.server.engines.readings.read_rows", counting)
    for cache_mib in (0, 256):
        async with loaded(settings(folder, max_batch_tokens=most, prefix_cache_mib=cache_mib)) as (engine, state):
            asking = Asking(engine, state)
            sizes.clear()
            found = await engine.run(await jobs_of(asking, asked))
            assert len(sizes) > 1
            assert max(sizes) <= most
            check_same(found, await alone(asking, await jobs_of(asking, asked)))


@pytest.mark.parametrize("scoring", [None, "label"])
async def test_questions_about_one_text_read_the_text_once_with_the_longest_question(
    folder: Path, monkeypatch: pytest.MonkeyPatch, scoring: str | None
) -> None:
    asked = [BEGINNING + "red 02?", BEGINNING + "is it blue 03, or another colour?", BEGINNING + "red 04?"]
    read: list[str] = []

    def counting(model: Any, rows: Sequence[PackedRow], *more: Any) -> Features:
        read.extend(row.text for row in rows)
        return read_rows(model, rows, *more)

    async with loaded(settings(folder, "three")) as (engine, state):
        jobs = await jobs_of(Asking(engine, state), asked, adapter="three", scoring=scoring)
        monkeypatch.setattr("blora.server.engines.readings.read_rows", counting)
        together = await engine.run(jobs)
        assert sorted(read) == [asked[0], asked[2]]  # the second question was read with what all begin with
        check_same(together, await alone(Asking(engine, state), jobs))
        assert len(read) == len(asked) * 2 - 1  # alone, every question is read after it


async def test_texts_are_read_once_in_any_order_of_questions_and_for_other_choices(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [BEGINNING + "first of all", "quite another beginning of a text, and as long: "]
    asked = [(text, choices) for choices in (LABELS, OTHER_CHOICES, ("a", "b")) for text in texts]
    read: list[int] = []

    def counting(model: Any, rows: Sequence[PackedRow], *more: Any) -> Features:
        read.extend(row.after(len(more[2].tokens) if more[2] is not None else 0).prompt_tokens for row in rows)
        return read_rows(model, rows, *more)

    async with loaded(settings(folder, "three")) as (engine, state):
        asking = Asking(engine, state)
        jobs = [await asking.job(text, choices=choices, adapter="three") for text, choices in asked]
        monkeypatch.setattr("blora.server.engines.readings.read_rows", counting)
        check_same(await engine.run(jobs), await alone(asking, jobs))
    assert read[:4] == [1] * 4  # all but the last token of a text are read with the longest of its questions


async def test_one_text_for_several_adapters_is_no_beginning_to_remember(asking: Asking) -> None:
    jobs = [job for name in ("one", "two") for job in await jobs_of(asking, QUESTIONS[-1:], adapter=name)]
    await asking.engine.run(jobs)
    assert not asking.engine._loaded_prefixes()._kept


async def test_over_http_answers_have_a_familiarity_and_its_histogram_is_exported(folder: Path) -> None:
    app = create_app(settings(folder, default_adapter="one"))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await app.state.service.settled.wait()
        assert app.state.service.failure is None

        async def ask(**fields: Any) -> httpx.Response:
            return await client.post("/v1/predict", json=fields)

        asked = [{"prompt": question} for question in QUESTIONS]
        asked += [{"prompt": question, "choices": list(OTHER_CHOICES)} for question in QUESTIONS]  # type: ignore[dict-item]
        served = [response.json() for response in await asyncio.gather(*(ask(**fields) for fields in asked))]
        in_process = await asyncio.to_thread(blora.load, folder / "one", base_model=folder / "tiny", dtype="float32")
        for answer, expected in zip(served, in_process.predict(asked), strict=True):
            assert answer["familiarity"] == pytest.approx(expected.familiarity, abs=TOLERANCE)
            assert 0 < answer["familiarity"] <= 1
            assert answer["top_choice"] == expected.top_choice
        strict = (await ask(prompt=QUESTIONS[2], policy={"min_familiarity": 1.0})).json()
        assert [reason["reason"] for reason in strict["abstain_reasons"]] == ["unfamiliar_question"]
        assert (await ask(prompt="why", policy={"min_familiarity": 0.0})).json()["answer"] in LABELS
        without = (await ask(prompt="why", adapter="two")).json()
        assert "familiarity" not in without
        refused = await ask(prompt="why", adapter="two", policy={"min_familiarity": 0.1})
        error = refused.json()["error"]
        assert (refused.status_code, error["param"]) == (422, "policy.min_familiarity")
        assert "'two' has no familiarity" in error["message"]
        cards = {card["name"]: card for card in (await client.get("/v1/adapters")).json()["data"]}
        assert cards["one"]["familiarity"]["depths"] == [1, 2]
        assert cards["two"]["familiarity"] is None
        metrics = (await client.get("/metrics")).text.splitlines()
        assert f'blora_familiarity_count{{adapter="one"}} {len(asked) + 2}.0' in metrics
        assert not any(line.startswith('blora_familiarity_count{adapter="two"') for line in metrics)


@pytest.mark.parametrize("without_head", [{"scoring": "label"}, {"choices": list(OTHER_CHOICES)}])
async def test_a_threshold_on_the_mutual_information_is_refused_where_the_head_does_not_answer(
    folder: Path, without_head: dict[str, Any]
) -> None:
    app = create_app(settings(folder, default_adapter="one"))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await app.state.service.settled.wait()
        asked = {"prompt": "why", "policy": {"max_mutual_information": 9.0}}
        assert (await client.post("/v1/predict", json=asked)).json()["answer"] in LABELS
        refused = await client.post("/v1/predict", json=asked | without_head)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "policy.max_mutual_information")
    assert "got draws that are all equal" in error["message"]


@pytest.mark.parametrize("without_head", [{"scoring": "label"}, {"choices": list(OTHER_CHOICES)}])
async def test_a_threshold_on_the_familiarity_is_refused_where_the_head_does_not_answer(
    folder: Path, without_head: dict[str, Any]
) -> None:
    app = create_app(settings(folder, default_adapter="one"))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await app.state.service.settled.wait()
        asked = {"prompt": "why", "policy": {"min_familiarity": 0.5}} | without_head
        refused = await client.post("/v1/predict", json=asked)
    error = refused.json()["error"]
    assert (refused.status_code, error["param"]) == (422, "policy.min_familiarity")
    assert "which says nothing about such an answer" in error["message"]


@pytest.mark.parametrize("without_head", [{"scoring": "label"}, {"choices": list(OTHER_CHOICES)}])
async def test_an_answer_in_which_the_head_has_no_part_says_so(folder: Path, without_head: dict[str, Any]) -> None:
    app = create_app(settings(folder, default_adapter="one"))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await app.state.service.settled.wait()
        asked = {"prompt": "why"}
        assert "without_head" not in (await client.post("/v1/predict", json=asked)).json().get("warnings", [])
        assert "without_head" in (await client.post("/v1/predict", json=asked | without_head)).json()["warnings"]


def test_in_process_a_threshold_on_the_mutual_information_is_refused_likewise(folder: Path) -> None:
    model = blora.load(folder / "one", base_model=folder / "tiny", dtype="float32")
    policy = {"max_mutual_information": 9.0}
    assert model.predict("why", policy=policy).answer in LABELS
    with pytest.raises(PromptError, match="got draws that are all equal") as refused:
        model.predict("why", choices=OTHER_CHOICES, policy=policy)
    assert refused.value.param == "policy.max_mutual_information"
