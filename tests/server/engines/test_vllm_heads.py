"""Adapters with a head behind a stand-in for vLLM's pooling server: the outcomes of the torch engine."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, cast

import pytest
import torch

from blora.errors import AdapterError, ConfigError
from blora.inference.packing import PackedRow
from blora.server.engines.protocol import Job
from blora.server.engines.vllm_engine import VllmEngine
from blora.server.scheduling.control import AbandonedError, Control
from blora.server.settings import Settings
from blora.vllm.client import VllmError
from tests.blora.base_model.test_checkpoint import saved_model
from tests.blora.inference.test_encoders import CONFIGS
from tests.heads import LABELS
from tests.last_layer import ADAPTERS, LAYER, write_base_and_heads, write_head
from tests.scenarios import random_model
from tests.server.engines.asking import Asking, loaded, settings, write_adapter
from tests.server.engines.fake_vllm import FakeVllm, fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's

# Float32 on both sides; vLLM's model reads a choice at a time, ours all in one row.
TOLERANCE = 1e-4
# The last has a choice of a single token, of which no state is read.
OFFERED = (LABELS, LABELS[:2], ("left", "right"), ("a", "whatever", "%"))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_and_heads(tmp_path_factory.mktemp("vllm-heads"))


@pytest.fixture
async def vllm(folder: Path) -> AsyncIterator[FakeVllm]:
    async with fake_vllm(folder / "tiny", pooling=True) as fake:
        yield fake


def chosen(folder: Path, fake: FakeVllm, tmp_path: Path, *adapters: str) -> Settings:
    there: dict[str, Any] = {"engine": "vllm", "engine_url": fake.url, "engine_folder": tmp_path / "draws"}
    return settings(folder, *adapters, **there)


@pytest.fixture
async def engine(folder: Path, vllm: FakeVllm, tmp_path: Path) -> AsyncIterator[VllmEngine]:
    made = VllmEngine(chosen(folder, vllm, tmp_path, *ADAPTERS))
    yield made
    await made.close()


async def job(engine: VllmEngine, handle: Any, choices: tuple[str, ...] = LABELS, scoring: str | None = None) -> Job:
    row = await engine.pack(handle, prompt="red 07, or green?", messages=None, choices=choices, scoring=scoring)
    return Job(handle, row, 4, None, None)


@pytest.mark.parametrize(
    ("choices", "scoring"), [*((offered, None) for offered in OFFERED), (LABELS, "label"), (OFFERED[2], "label")]
)
async def test_its_outcomes_are_those_of_torch_from_a_request_for_each_text(
    folder: Path, vllm: FakeVllm, engine: VllmEngine, choices: tuple[str, ...], scoring: str | None
) -> None:
    handles = (await engine.load()).adapters
    async with loaded(settings(folder, *ADAPTERS)) as (here, state):
        asking = Asking(here, state)
        for handle in handles:
            one = await job(engine, handle, choices, scoring)
            await engine.run([one])  # another adapter's connections are new to this one
            asked = vllm.asked
            [found] = await engine.run([one])
            n_read = sum(len(tokens) > 1 for tokens in cast(PackedRow, one.row).continuations)
            assert vllm.asked - asked == max(n_read, 1)
            question = "red 07, or green?"
            [expected] = await here.run(
                [await asking.job(question, adapter=handle.name, choices=choices, scoring=scoring)]
            )
            torch.testing.assert_close(found.probs, expected.probs, rtol=0, atol=TOLERANCE)
            assert found.familiarity == pytest.approx(expected.familiarity, abs=TOLERANCE)
            assert found.guesses == pytest.approx(expected.guesses, abs=TOLERANCE)


async def test_a_lora_changes_the_answer_and_is_the_only_thing_that_vllm_holds(
    vllm: FakeVllm, engine: VllmEngine
) -> None:
    handles = (await engine.load()).adapters
    assert len(vllm.loras) == 2
    found = [(await engine.run([await job(engine, handle)]))[0].probs for handle in handles]
    for alone, above in zip(found[:2], found[2:], strict=True):
        assert (alone - above).abs().max() > 0.01
        assert alone.std(0).max() > 0.01  # draws differ
        assert 0.1 < above.max() < 0.9


async def test_a_vllm_that_was_started_again_is_given_the_lora_anew(vllm: FakeVllm, engine: VllmEngine) -> None:
    handle = (await engine.load()).adapters[-1]
    expected = await engine.run([await job(engine, handle)])
    vllm.loras.clear()
    assert torch.equal((await engine.run([await job(engine, handle)]))[0].probs, expected[0].probs)
    assert len(vllm.loras) == 1
    await engine.probe()


async def test_a_request_that_fails_fails_the_answer(vllm: FakeVllm, engine: VllmEngine) -> None:
    handle = (await engine.load()).adapters[0]
    vllm.fail = 1
    with pytest.raises(VllmError, match="answered 500"):
        await engine.run([await job(engine, handle)])
    assert len((await engine.run([await job(engine, handle)]))[0].probs) == 4


async def test_a_request_that_nobody_waits_for_is_not_sent(vllm: FakeVllm, engine: VllmEngine) -> None:
    handle = (await engine.load()).adapters[0]
    asked = vllm.asked
    with pytest.raises(AbandonedError):
        await engine.run([await job(engine, handle)], Control(lambda payload: False))
    assert vllm.asked == asked


@pytest.mark.parametrize("name", ADAPTERS)
async def test_a_vllm_of_another_model_is_noticed(folder: Path, vllm: FakeVllm, tmp_path: Path, name: str) -> None:
    vllm.scale = 1.3
    engine = VllmEngine(chosen(folder, vllm, tmp_path, name))
    with pytest.raises(AdapterError, match="let vLLM serve the same base model"):
        await engine.load()
    await engine.close()


async def test_an_adapter_needs_the_runner_of_its_kind(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    write_adapter(folder / "scores", folder / "tiny", seed=1)
    for name, pooling, told in (("linear", False, "--runner pooling"), ("scores", True, "--runner generate")):
        vllm.pooling = pooling
        engine = VllmEngine(chosen(folder, vllm, tmp_path, name))
        with pytest.raises(AdapterError, match=f"vLLM cannot serve adapter .* {told}"):
            await engine.load()
        assert vllm.loras == {}
        await engine.close()


async def test_a_head_on_other_states_is_refused(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    write_head(folder, "linear-deep", (1, LAYER))
    engine = VllmEngine(chosen(folder, vllm, tmp_path, "linear-deep"))
    with pytest.raises(AdapterError, match=r"reads the states at \[1, 2\], expected 2 alone, .* --depths last"):
        await engine.load()
    await engine.close()


async def test_questions_about_one_text_read_it_once(folder: Path, vllm: FakeVllm, engine: VllmEngine) -> None:
    handles = {handle.name: handle for handle in (await engine.load()).adapters}
    jobs = [await job(engine, handles[name]) for name in ("linear", "linear", "linear-lora")]
    alone = [(await engine.run([one]))[0].probs for one in jobs]
    asked = vllm.asked
    found = await engine.run(jobs)
    assert vllm.asked - asked == 2  # of the base model, and under the LoRA
    for outcome, expected in zip(found, alone, strict=True):
        torch.testing.assert_close(outcome.probs, expected)


@pytest.mark.parametrize("name", ADAPTERS)
async def test_a_vllm_that_was_started_again_with_another_model_gives_no_answer(
    folder: Path, tmp_path: Path, name: str
) -> None:
    async with fake_vllm(folder / "tiny", pooling=True) as first:
        engine = VllmEngine(chosen(folder, first, tmp_path, name))
        [handle] = (await engine.load()).adapters
        await engine.run([await job(engine, handle)])
    async with fake_vllm(folder / "tiny", first.port, pooling=True) as second:
        second.scale = 1.3
        with pytest.raises(VllmError, match="let vLLM serve the same base model"):
            await engine.run([await job(engine, handle)])
        with pytest.raises(AdapterError, match="let vLLM serve the same base model"):
            await engine.probe()
        second.scale = 1.0
        assert len((await engine.run([await job(engine, handle)]))[0].probs) == 4
        await engine.close()


async def test_a_companion_is_refused(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    encoder = saved_model(tmp_path / "encoder", random_model(CONFIGS["bert"]))
    chose = chosen(folder, vllm, tmp_path, *ADAPTERS)
    made = VllmEngine(chose.model_copy(update={"base_model": f"{chose.base_model}+{encoder}"}))
    with pytest.raises(ConfigError, match="got the companion encoder with --engine vllm, which reads none"):
        await made.load()
    await made.close()
