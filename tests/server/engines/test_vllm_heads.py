"""Adapters with a head behind a stand-in for vLLM's pooling server: the outcomes of the torch engine, from one request."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from blora.adapter import save_adapter
from blora.base_model import load_base_model
from blora.config import AdapterConfig, HeadConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.errors import AdapterError
from blora.inference.packing import pack
from blora.inference.reading import read_rows
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.inject import inject
from blora.posterior.posterior import Posterior
from blora.server.engines.protocol import Job
from blora.server.engines.vllm_client import VllmClient, VllmError
from blora.server.engines.vllm_engine import VllmEngine
from blora.server.scheduling.control import AbandonedError, Control
from blora.server.settings import Settings
from blora.training.head.familiarity import fit_familiarity
from tests.heads import LABELS, head_of
from tests.scenarios import adapted_modules, random_draws, tiny_model, tiny_tokenizer
from tests.server.engines.asking import Asking, loaded, settings, write_adapter
from tests.server.engines.fake_vllm import FakeVllm, fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's

# Float32 on both sides; vLLM's model reads a choice at a time, ours all in one row.
TOLERANCE = 1e-4
ADAPTERS = ("linear", "pointer", "linear-lora", "pointer-lora")
LAYER, HIDDEN = 2, 32
# The last has a choice of a single token, of which no state is read.
OFFERED = (LABELS, LABELS[:2], ("left", "right"), ("a", "whatever", "%"))


def write_head(root: Path, name: str, depths: tuple[int, ...] = (LAYER,)) -> None:
    """Write an adapter with a familiarity, of the readout that its name begins with, above a LoRA if it ends so."""
    base = load_base_model(str(root / "tiny"), device="cpu", dtype="float32")
    linear = name.startswith("linear")
    modules = adapted_modules(base.model) if name.endswith("lora") else {}
    lora = Posterior(modules, PosteriorConfig(method="lora", rank=3), seed=0)
    if modules:
        lora.set_mean(random_draws(modules, 1).factors)
    inject(base.model, modules)
    config = HeadConfig(depths=depths, n_states=len(depths) * HIDDEN, n_directions=4, n_grams=8 if linear else 0)
    prompt = PromptConfig(
        choices=LABELS if linear else None, readout="linear" if linear else "pointer", choice_end="newline"
    )
    rows = [
        pack(base.tokenizer, prompt=f"red {i:02}", choices=LABELS, config=prompt, max_length=200) for i in range(60)
    ]
    with torch.no_grad():
        read = [read_rows(base.model, part, config, lora.mean()) for part in (rows[:40], rows[40:])]
    own, other = (features.choices() for features in read)
    assert read[0].prompt is not None
    assert read[1].prompt is not None
    choices = (own[0], other) if own is not None and other is not None else None
    familiarity = fit_familiarity(depths, read[0].prompt, read[1].prompt, choices=choices).familiarity
    posterior = HeadPosterior(head_of(config, len(LABELS) if linear else 1), lora)
    made = AdapterConfig(
        base_model=base.ref,
        target_modules=("q_proj", "v_proj") if modules else (),
        modules=modules,
        posterior=lora.config,
        prompt=prompt,
        sampling=SamplingConfig(n_samples=4, seed=7, temperature=30.0, lapse=0.1),
        head=config,
        familiarity=familiarity.config,
    )
    save_adapter(root / name, posterior, made, base, familiarity)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("vllm-heads")
    tiny_model().save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    for name in ADAPTERS:
        write_head(root, name)
    return root


@pytest.fixture
async def vllm(folder: Path) -> AsyncIterator[FakeVllm]:
    async with fake_vllm(folder / "tiny") as fake:
        fake.pooling = True
        yield fake


def chosen(folder: Path, fake: FakeVllm, tmp_path: Path, *adapters: str) -> Settings:
    there: dict[str, Any] = {"engine": "vllm", "engine_url": fake.url, "engine_folder": tmp_path / "draws"}
    return settings(folder, *adapters, **there, timeout_s=0.2)


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
async def test_its_outcomes_are_those_of_torch_from_one_request(
    folder: Path, vllm: FakeVllm, engine: VllmEngine, choices: tuple[str, ...], scoring: str | None
) -> None:
    handles = (await engine.load()).adapters
    async with loaded(settings(folder, *ADAPTERS)) as (here, state):
        asking = Asking(here, state)
        for handle in handles:
            asked = vllm.asked
            [found] = await engine.run([await job(engine, handle, choices, scoring)])
            assert vllm.asked - asked == 1
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


async def test_a_vllm_of_another_model_is_noticed(vllm: FakeVllm, engine: VllmEngine) -> None:
    vllm.scale = 4.0
    with pytest.raises(AdapterError, match="let vLLM serve the same base model"):
        await engine.load()


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


@pytest.mark.parametrize("n_bytes", [0, 4, 12])
async def test_states_of_another_size_are_an_error(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    client = VllmClient("http://vllm", timeout_s=10, concurrency=3)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=bytes(n_bytes)))
    monkeypatch.setattr(client, "_http", httpx.AsyncClient(base_url="http://vllm", transport=transport))
    with pytest.raises(VllmError, match=r"bytes in place of the states of \[2\] tokens"):
        await client.states("base", [[1, 2]])
    await client.close()
