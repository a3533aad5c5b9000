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
from email.message import Message
from http import HTTPStatus
from http.client import parse_headers
from io import BytesIO
from itertools import cycle
from pathlib import Path
from statistics import quantiles
from typing import Any
from urllib.parse import urlsplit

import httpx

from benchmarks.concurrent import questions
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT, Server, serve

__all__ = ["Seen", "measure"]

RESULT = ROOT / "benchmarks" / "results" / "saturation" / "result.json"
OVERLOAD = 4
# What the queue holds when the flood begins is not what it holds in the long run.
WARM_UP_S = 20.0
PROBE_EVERY_S = 0.5
PROBE_TIMEOUT_S = 2.0


@dataclass
class Seen:
    """What came back to whoever asked; `lost` counts connections that ended without a response."""

    statuses: Counter[int] = field(default_factory=Counter)
    seconds: list[float] = field(default_factory=list)
    without_retry_after: int = 0
    lost: int = 0

    def add(self, response: tuple[int, Message] | None, seconds: float) -> None:
        """Count one response and how long it took, or a connection that ended without one."""
        if response is None:
            self.lost += 1
            return
        status, headers = response
        self.statuses[status] += 1
        if status == HTTPStatus.OK:
            self.seconds.append(seconds)
        elif status == HTTPStatus.TOO_MANY_REQUESTS:
            self.without_retry_after += int(headers.get("retry-after", 0)) < 1

    def outcomes(self) -> dict[str, Any]:
        """Return the count of each status, and median and 99th percentile of the seconds to an answer."""
        percentiles = quantiles(self.seconds, n=100)
        statuses = {str(status): count for status, count in sorted(self.statuses.items())}
        return {"statuses": statuses, "lost": self.lost, "p50_s": percentiles[49], "p99_s": percentiles[98]}


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


async def _ask(server: Server, body: dict[str, Any]) -> tuple[int, Message] | None:
    """Return the status and the headers of the response to one question; None if the connection ends without one.

    Each question has a connection of its own: a pool of a thousand would take the time that the server needs.
    """
    address = urlsplit(server.url)
    content = json.dumps(body).encode()
    head = f"POST /v1/predict HTTP/1.1\r\nhost: {address.netloc}\r\ncontent-type: application/json\r\n"
    try:
        reader, writer = await asyncio.open_connection(address.hostname, address.port)
        writer.write(f"{head}connection: close\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)
        received = await reader.read()
        writer.close()
    except OSError:
        return None
    if not received:
        return None
    status, _, headers = received.partition(b"\r\n")
    return int(status.split()[1]), parse_headers(BytesIO(headers))


async def _waiting_clients(server: Server, n_clients: int, seconds: float) -> dict[str, Any]:
    """Answers a second to clients that each ask one question after the other."""
    seen = Seen()
    bodies = cycle(questions(200))
    began = time.perf_counter()
    end = began + seconds

    async def ask() -> None:
        while (asked := time.perf_counter()) < end:
            response = await _ask(server, next(bodies))
            seen.add(response, time.perf_counter() - asked)

    await asyncio.gather(*(ask() for _ in range(n_clients)))
    wall = time.perf_counter() - began
    return {"clients": n_clients, "answers_per_s": seen.statuses[200] / wall, **seen.outcomes()}


async def _flooded(server: Server, rate: float, seconds: float) -> dict[str, Any]:
    """Return the outcomes of questions that arrive at random times at a given rate, and of probes."""
    seen, late, probes = Seen(), Seen(), Counter[str]()
    chance = random.Random(0)
    bodies = cycle(questions(200))
    async with (
        httpx.AsyncClient(base_url=server.url, timeout=PROBE_TIMEOUT_S, headers={"connection": "close"}) as prober,
        asyncio.TaskGroup() as group,
    ):
        began = time.perf_counter()
        counted_from, end = began + WARM_UP_S, began + WARM_UP_S + seconds

        async def ask() -> None:
            asked = time.perf_counter()
            response = await _ask(server, next(bodies))
            now = time.perf_counter()
            (seen if counted_from <= now < end else late).add(response, now - asked)

        async def probe(path: str) -> None:
            while time.perf_counter() < end:
                try:
                    probes[f"{path} {(await prober.get(path)).status_code}"] += 1
                except httpx.TimeoutException:
                    probes[f"{path} none in {PROBE_TIMEOUT_S:g} s"] += 1
                except httpx.TransportError:
                    probes[f"{path} lost"] += 1
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
    result |= about("python -m benchmarks.faults.saturation")
    write(arguments.json, result)


if __name__ == "__main__":
    main()
