"""Four times as many questions as the server can answer: does it answer as many as before, and in time?

`python -m benchmarks.faults.saturation` starts `blora serve` with the demo adapter, finds the most that clients who
each wait for their answer get out of it, then sends questions at random times at four times that rate, whatever comes
back.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

from benchmarks.concurrent import questions
from benchmarks.server_process import ROOT, Server, serve
from blora.training.provenance import machine, revision

__all__ = ["Seen", "measure"]

RESULT = ROOT / "benchmarks" / "results" / "saturation" / "result.json"
OVERLOAD = 4
# What the queue holds when the flood begins is not what it holds in the long run.
WARM_UP_S = 20.0
PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 2.0


@dataclass
class Seen:
    """What came back to whoever asked."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0

    def add(self, response: httpx.Response, seconds: float) -> None:
        """One response, and how long it took."""
        self.statuses[response.status_code] += 1
        if response.status_code == httpx.codes.OK:
            self.seconds.append(seconds)
        elif response.status_code == httpx.codes.TOO_MANY_REQUESTS:
            self.without_retry_after += int(response.headers.get("retry-after", 0)) < 1

    def outcomes(self) -> dict[str, Any]:
        """Return the count of each status, and median and 99th percentile of the seconds to an answer."""
        percentiles = quantiles(self.seconds, n=100)
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        return {"statuses": statuses, "p50_s": percentiles[49], "p99_s": percentiles[98]}


def measure(seconds: float, clients: tuple[int, ...], **flags: str) -> dict[str, Any]:
    """Return the result object.

    Args:
        seconds: of each measurement.
        clients: how many ask at once, one measurement each, to find the most answers a second.
        flags: of the server.
    """
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log", **flags) as server:
        waiting = [asyncio.run(_waiting_clients(server, n, seconds)) for n in clients]
        most = max(row["answers_per_s"] for row in waiting)
        flooded = asyncio.run(_flooded(server, OVERLOAD * most, seconds))
        info = httpx.get(f"{server.url}/info").json()
        after = time.perf_counter()
        calm = httpx.post(f"{server.url}/v1/predict", json=questions(1)[0], timeout=60)
        calm_s = time.perf_counter() - after
    return {
        "waiting_clients": waiting,
        "flooded": flooded,
        "goodput_ratio": flooded["answers_per_s"] / most,
        "calm_after": {"status": calm.status_code, "seconds": calm_s},
        "overload": OVERLOAD,
        "base_model": info["model"]["name"],
        "dtype": info["model"]["dtype"],
        "timeout_s": info["limits"]["timeout_s"],
    }


async def _waiting_clients(server: Server, n_clients: int, seconds: float) -> dict[str, Any]:
    """Answers a second to clients that each ask one question after the other."""
    seen = Seen()
    bodies = cycle(questions(200))
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client:
        end = time.perf_counter() + seconds

        async def ask() -> None:
            while (began := time.perf_counter()) < end:
                response = await client.post("/v1/predict", json=next(bodies))
                seen.add(response, time.perf_counter() - began)

        began = time.perf_counter()
        await asyncio.gather(*(ask() for _ in range(n_clients)))
        wall = time.perf_counter() - began
    return {"clients": n_clients, "answers_per_s": seen.statuses[200] / wall, **seen.outcomes()}


async def _flooded(server: Server, rate: float, seconds: float) -> dict[str, Any]:
    """Return the outcomes of questions that arrive at random times at a given rate, and of probes."""
    seen, late, probes = Seen(), Seen(), Counter[str]()
    chance = random.Random(0)
    bodies = cycle(questions(200))
    limits = httpx.Limits(max_connections=None)
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=120, limits=limits) as client,
        httpx.AsyncClient(base_url=server.url, timeout=PROBE_TIMEOUT_S) as prober,
        asyncio.TaskGroup() as group,
    ):
        began = time.perf_counter()
        counted_from, end = began + WARM_UP_S, began + WARM_UP_S + seconds

        async def ask() -> None:
            asked = time.perf_counter()
            response = await client.post("/v1/predict", json=next(bodies))
            now = time.perf_counter()
            (seen if counted_from <= now < end else late).add(response, now - asked)

        async def probe(path: str) -> None:
            while time.perf_counter() < end:
                try:
                    probes[f"{path} {(await prober.get(path)).status_code}"] += 1
                except httpx.TimeoutException:
                    probes[f"{path} none in {PROBE_TIMEOUT_S:g} s"] += 1
                await asyncio.sleep(PROBE_EVERY_S)

        for path in ("/livez", "/readyz"):
            group.create_task(probe(path))
        while time.perf_counter() < end:
            group.create_task(ask())
            await asyncio.sleep(chance.expovariate(rate))
    return {
        "asked_per_s": rate,
        "answers_per_s": seen.statuses[200] / seconds,
        "without_retry_after": seen.without_retry_after + late.without_retry_after,
        "probes": dict(sorted(probes.items())),
        **seen.outcomes(),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULT)
    parser.add_argument("--seconds", type=float, default=60.0, help="of each measurement")
    arguments = parser.parse_args()
    result = measure(arguments.seconds, clients=(8, 32, 64))
    result |= {"machine": machine(), "revision": revision(), "command": "python -m benchmarks.faults.saturation"}
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
