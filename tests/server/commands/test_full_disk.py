"""A full disk, simulated by /dev/full."""

import asyncio
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.faults.tiny_server import KEY, tiny_server
from benchmarks.server_process import ADAPTER, TRIAGE

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
    (tmp_path / "answers.jsonl.run.json").symlink_to(FULL)
    done = subprocess.run([*command, "--adapter", str(ADAPTER)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr == ("blora predict: No space left on device\n")
