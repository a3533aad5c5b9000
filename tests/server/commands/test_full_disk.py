"""A full disk, simulated by /dev/full."""

import asyncio
import json
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from safetensors import SafetensorError

from benchmarks.faults.tiny_server import KEY, tiny_server
from benchmarks.server_process import ADAPTER, TRIAGE
from blora.cli import main

FULL = Path("/dev/full")

pytestmark = pytest.mark.skipif(not FULL.exists(), reason="there is no /dev/full")


def test_a_log_that_cannot_be_written_costs_no_answer(tmp_path: Path) -> None:
    with tiny_server(tmp_path, FULL, log_level="info", log_format="json") as server:
        headers = {"authorization": f"Bearer {KEY}"}

        async def ask_many() -> list[int]:
            async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
                found = await asyncio.gather(*(client.post("/v1/predict", json={"prompt": "x"}) for _ in range(20)))
            return [response.status_code for response in found]

        assert asyncio.run(ask_many()) == [200] * 20


@pytest.mark.model
def test_an_output_that_cannot_be_written_is_told_in_a_line(tmp_path: Path) -> None:
    rows = TRIAGE / "test.jsonl"
    command = [sys.executable, "-m", "blora.cli", "predict", str(rows), str(tmp_path / "answers.jsonl")]
    note = tmp_path / "answers.jsonl.run.json"
    note.symlink_to(FULL)
    done = subprocess.run([*command, "--adapter", str(ADAPTER)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == f"blora predict: {note}: No space left on device\n"


@pytest.mark.model
def test_an_adapter_that_cannot_be_written_is_told_in_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("blora.disk.tensors.save_file", full)
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(
            json.dumps({"prompt": f"{kind} {n}", "label_text": kind}) + "\n"
            for n in range(12)
            for kind in ("red", "blue")
        )
    )
    command = ["train", "--data", str(rows), "--output", str(tmp_path / "new")]
    assert main(command) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"blora train: {tmp_path}/")
    assert told.endswith("head.safetensors cannot be written: I/O error: No space left on device (os error 28)")
    assert [path.name for path in tmp_path.iterdir()] == ["rows.jsonl"]
