"""OpenMP threads in a real server: the computing thread has a team, the event loop's thread has none."""

import asyncio
from pathlib import Path

import httpx
import psutil
import pytest

from benchmarks.server_process import serve

pytestmark = pytest.mark.model

N_ASKED, AT_ONCE = 240, 20


async def test_answers_start_no_second_team(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "2")
    with serve(tmp_path / "log") as live:
        process = psutil.Process(live.process.pid)
        async with httpx.AsyncClient(base_url=live.url, timeout=300) as client:

            async def ask(k: int) -> None:
                (await client.post("/v1/predict", json={"prompt": f"Where is order {k}?"})).raise_for_status()

            for first in range(0, N_ASKED, AT_ONCE):
                await asyncio.gather(*map(ask, range(first, first + AT_ONCE)))
                if not first:
                    n_threads = process.num_threads()
            metrics = (await client.get("/metrics")).text
            assert "\nblora_drift_wealth{" in metrics
            assert process.num_threads() == n_threads
