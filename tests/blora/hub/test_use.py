"""An adapter of the hub, wherever a folder is accepted, on a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

import blora
from benchmarks.server_process import serve
from blora.errors import AdapterError
from blora.hub.fetch import fetch
from blora.hub.name import HubName
from blora.server.engines.torch_engine import TorchEngine
from blora.server.settings import Settings
from blora.training.commands import calibrate, evaluate, export, familiarize, tune
from tests.hub import Hub, Repository
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import CHOICES, write_adapter
from tests.training.toys import write_jsonl

NAME = "hf://acme/tickets"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("use")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    write_adapter(folder / "one", folder / "tiny", seed=1)
    rows = ({"prompt": f"question {k}", "label": CHOICES[k % len(CHOICES)]} for k in range(6))
    write_jsonl(folder / "rows.jsonl", rows)
    return folder


@pytest.fixture
def base(root: Path, remote: Hub) -> str:
    """The base model of the adapter that the hub has."""
    repository = remote.repositories["acme/tickets"] = Repository()
    repository.commit({file.name: file.read_bytes() for file in (root / "one").iterdir()})
    return str(root / "tiny")


def test_load_answers_as_from_a_folder(root: Path, base: str) -> None:
    local = blora.load(root / "one", base_model=base, device="cpu", dtype="float32")
    model = blora.load(NAME, base_model=base, device="cpu", dtype="float32")
    assert (model.name, model.adapter.digest) == ("tickets", local.adapter.digest)
    assert model.predict("why?").probabilities == local.predict("why?").probabilities
    assert blora.load(NAME, base_model=base, device="cpu", dtype="float32", name="mine").name == "mine"


def test_what_is_in_the_cache_is_not_calibrated(root: Path, base: str) -> None:
    model = blora.load(NAME, base_model=base, device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match="blora pull NAME FOLDER"):
        model.calibrate(str(root / "rows.jsonl"))


@pytest.mark.parametrize("command", [calibrate, familiarize, tune])
def test_commands_that_change_an_adapter_refuse_it(command: object, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        command.main([NAME, "--data", "rows.jsonl"])  # type: ignore[attr-defined]
    assert f"copy it with `blora pull {NAME} FOLDER`" in capsys.readouterr().err


@pytest.mark.parametrize("command", [calibrate, familiarize, tune])
def test_commands_that_change_an_adapter_refuse_its_folder_in_the_cache(
    command: object, root: Path, base: str, tmp_path: Path
) -> None:
    folder = fetch(HubName.parse(NAME))
    rows = ["--data", str(root / "rows.jsonl"), "--base-model", base, "--device", "cpu"]
    with pytest.raises(AdapterError, match=f"got {folder} to change.*copy it with `blora pull NAME FOLDER`"):
        command.main([str(folder), *rows])  # type: ignore[attr-defined]
    fetch(HubName.parse(NAME))  # fails if a file has changed


def test_nothing_is_written_over_an_adapter_in_the_cache(root: Path, base: str, tmp_path: Path) -> None:
    folder = fetch(HubName.parse(NAME))
    where = ["--base-model", base, "--device", "cpu", "--dtype", "float32"]
    arguments = [str(root / "one"), "--data", str(root / "rows.jsonl"), *where]
    with pytest.raises(AdapterError, match=f"got {folder} to change"):
        tune.main([*arguments, "--output", str(folder)])
    assert tune.main([str(folder), *arguments[1:], "--output", str(tmp_path / "mine")]) == 0


def test_evaluate_and_export_read_it(root: Path, base: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    where = ["--base-model", base, "--device", "cpu", "--dtype", "float32"]
    assert evaluate.main([NAME, "--data", str(root / "rows.jsonl"), *where]) == 0
    assert export.main([NAME, str(tmp_path / "draws"), "--draws", "2", *where]) == 0
    assert len(list((tmp_path / "draws").iterdir())) == 2
    assert "accuracy" in capsys.readouterr().out


def test_predict_answers_a_file(root: Path, base: str, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    command = [sys.executable, "-m", "blora.cli", "predict", str(root / "rows.jsonl"), str(output), "--adapter", NAME]
    more = ["--base-model", base, "--device", "cpu", "--dtype", "float32"]
    done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=300, env=os.environ)
    assert done.returncode == 0, done.stderr
    first = json.loads(output.read_text().splitlines()[0])
    assert first["prediction"]["adapter"]["name"] == "tickets"


async def test_an_engine_serves_it_beside_others(root: Path, base: str) -> None:
    adapters = (f"support={NAME}", NAME, f"one={root / 'one'}")
    engine = TorchEngine(Settings(base_model=base, device="cpu", dtype="float32", adapters=adapters))
    try:
        loaded = await engine.load()
        assert [handle.name for handle in loaded.adapters] == ["support", "tickets", "one"]
        assert len({handle.digest for handle in loaded.adapters}) == 1
    finally:
        await engine.close()


def test_a_server_starts_from_it_and_then_without_the_hub(
    base: str, remote: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    remote.repositories["acme/tickets"].private = True
    monkeypatch.setenv("HF_TOKEN", remote.token)
    flags = {"adapters": f"support={NAME}", "base_model": base, "device": "cpu", "dtype": "float32"}
    for run in ("first", "offline"):
        with serve(tmp_path / run, log_level="debug", **flags) as server:
            answer = httpx.post(f"{server.url}/v1/predict", json={"prompt": "why?"}, timeout=60).json()
            assert answer["adapter"]["name"] == "support"
        log = (tmp_path / run).read_text()
        commit = remote.repositories["acme/tickets"].branches["main"]
        assert f"Using hf://acme/tickets@{commit}#{answer['adapter']['digest']}" in log
        assert remote.token not in log
        asked = len(remote.requests)
        monkeypatch.setenv("HF_HUB_OFFLINE", "1")
        remote.failing = 500
    assert len(remote.requests) == asked


def test_a_server_that_gets_none_says_why(base: str, remote: Hub, tmp_path: Path) -> None:
    flags = {"adapters": f"{NAME}@v9", "base_model": base, "device": "cpu", "dtype": "float32"}
    with (
        pytest.raises(RuntimeError, match="got hf://acme/tickets@v9, which the hub does not give"),
        serve(tmp_path / "log", **flags),
    ):
        pass
