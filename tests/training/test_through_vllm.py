"""`blora calibrate --engine-url`: a proof for what vLLM's states come to, which the vLLM engine then serves by."""

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from blora.adapter import attach, load_adapter
from blora.adapter.calibration_file import CALIBRATION_FILE, read_calibrations
from blora.base_model import load_base_model
from blora.decision.resolution import COARSE
from blora.errors import AdapterError, BloraError, ConfigError, NotCalibratedError
from blora.inference.packing import pack
from blora.posterior.bank import SampleBank
from blora.server.engines.torch_engine import TorchEngine
from blora.server.engines.vllm_engine import VllmEngine
from blora.training.commands import calibrate
from blora.training.evaluate import score_packed
from tests.heads import LABELS
from tests.last_layer import ADAPTERS, LAYER, write_base_and_heads, write_head
from tests.server.engines.asking import settings, write_adapter
from tests.server.engines.fake_vllm import FakeVllm, fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's

N_ROWS = 120
# Float32 on both sides; vLLM's model reads a choice at a time, ours all in one row.
TOLERANCE = 1e-4
GOAL = ("--target-risk", "0.3", "--delta", "0.1", "--score", "confidence")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_base_and_heads(tmp_path_factory.mktemp("through-vllm"))


@pytest.fixture
async def vllm(folder: Path) -> AsyncIterator[FakeVllm]:
    async with fake_vllm(folder / "tiny", pooling=True) as fake:
        yield fake


def rows_of(folder: Path, name: str, file: Path) -> Path:
    """Rows of three choices each, of which most are labelled as the adapter answers."""
    base = load_base_model(str(folder / "tiny"), device="cpu", dtype="float32")
    adapter = load_adapter(folder / name, base)
    attach(base, adapter)
    sampling, prompt = adapter.config.sampling, adapter.config.prompt
    bank = SampleBank.draw(adapter.posterior, adapter.digest, sampling.n_samples, sampling.seed)
    choices = prompt.choices or LABELS
    texts = [f"red {i:03}?" for i in range(N_ROWS)]
    packed = [pack(base.tokenizer, prompt=text, choices=choices, config=prompt, max_length=200) for text in texts]
    tops = score_packed(base.model, packed, bank.draws, about="").exp().mean(0).argmax(-1).tolist()
    rows = [
        {"prompt": text, "choices": choices, "label": (top + (i % 10 == 0)) % len(choices)}
        for i, (text, top) in enumerate(zip(texts, tops, strict=True))
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


async def calibrated(folder: Path, name: str, data: Path, *more: str) -> None:
    arguments = [str(folder / name), "--data", str(data), "--base-model", str(folder / "tiny"), "--dtype", "float32"]
    assert await asyncio.to_thread(calibrate.main, [*arguments, *GOAL, *more]) == 0


@pytest.mark.parametrize("name", ADAPTERS)
async def test_the_proof_is_that_of_this_process_and_the_engine_serves_by_it(
    folder: Path, vllm: FakeVllm, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blora.decision.calibrate.resolution_of", lambda dtype: COARSE)  # vLLM's, also in float32
    (folder / name / CALIBRATION_FILE).unlink(missing_ok=True)
    data, there = rows_of(folder, name, tmp_path / "rows.jsonl"), ("--engine-url", vllm.url)
    await calibrated(folder, name, data, *there, "--engine-folder", str(tmp_path / "draws"))
    with pytest.raises(NotCalibratedError):
        await TorchEngine(settings(folder, name)).load()
    await calibrated(folder, name, data)
    by_vllm, here = read_calibrations(folder / name)
    assert (by_vllm.binding.dtype, here.binding.dtype) == ("vllm", "float32")
    for one, other in zip(by_vllm.levels, here.levels, strict=True):
        assert one.target_risk == other.target_risk
        assert (one.threshold is None) == (other.threshold is None)
        assert one.threshold == pytest.approx(other.threshold, abs=TOLERANCE)
    assert by_vllm.default_level.threshold is not None
    assert by_vllm.gate is not None
    assert here.gate is not None
    assert by_vllm.gate.reference == pytest.approx(here.gate.reference, abs=TOLERANCE)
    engine = VllmEngine(settings(folder, name, engine="vllm", engine_url=vllm.url, engine_folder=tmp_path / "draws"))
    [handle] = (await engine.load()).adapters
    assert handle.calibration == by_vllm
    await engine.close()


async def refused(folder: Path, name: str, tmp_path: Path, *more: str) -> BloraError:
    (folder / name / CALIBRATION_FILE).unlink(missing_ok=True)
    data = rows_of(folder, name, tmp_path / "rows.jsonl")
    with pytest.raises(BloraError) as raised:
        await calibrated(folder, name, data, *more)
    assert not (folder / name / CALIBRATION_FILE).exists()  # no row is used up
    return raised.value


async def test_an_adapter_that_vllm_gives_no_states_for_is_refused(
    folder: Path, vllm: FakeVllm, tmp_path: Path
) -> None:
    write_adapter(folder / "scores", folder / "tiny", seed=1)
    write_head(folder, "linear-deep", (1, LAYER))
    there = ("--engine-url", vllm.url)
    assert "without a head" in str(await refused(folder, "scores", tmp_path, *there))
    assert "reads the states at [1, 2], expected 2 alone" in str(await refused(folder, "linear-deep", tmp_path, *there))
    assert "got no --engine-folder" in str(await refused(folder, "linear-lora", tmp_path, *there))
    assert vllm.asked == 0
    assert "without --engine-url" in str(await refused(folder, "linear", tmp_path, "--engine-folder", str(tmp_path)))


async def test_a_vllm_that_cannot_answer_is_told(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    gone = await refused(folder, "linear", tmp_path, "--engine-url", "http://127.0.0.1:9")
    assert isinstance(gone, ConfigError)
    assert "No vLLM answers at http://127.0.0.1:9" in str(gone)
    malformed = await refused(folder, "linear", tmp_path, "--engine-url", "http://vllm:80a0")
    assert "got --engine-url 'http://vllm:80a0', expected http://HOST:PORT" in str(malformed)
    vllm.pooling = False
    generating = await refused(folder, "linear", tmp_path, "--engine-url", vllm.url)
    assert "was started without --runner pooling" in str(generating)


@pytest.mark.parametrize("name", ["linear", "pointer"])
async def test_a_vllm_of_another_model_is_noticed(folder: Path, vllm: FakeVllm, tmp_path: Path, name: str) -> None:
    vllm.scale = 1.3
    found = await refused(folder, name, tmp_path, "--engine-url", vllm.url)
    assert isinstance(found, AdapterError)
    assert "let vLLM serve the same base model" in str(found)


async def test_a_vllm_that_is_started_again_meanwhile_with_another_model_is_noticed(
    folder: Path, vllm: FakeVllm, tmp_path: Path
) -> None:
    vllm.another_after = 60  # of the 136 or more requests
    found = await refused(folder, "linear", tmp_path, "--engine-url", vllm.url)
    assert isinstance(found, AdapterError)
    assert "let vLLM serve the same base model" in str(found)
    assert vllm.asked < N_ROWS
