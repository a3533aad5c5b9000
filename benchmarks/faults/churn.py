"""Adapters that come and go under load, for half an hour: is any answer lost, or another adapter's, and does it grow?

`python -m benchmarks.faults.churn` serves a tiny random model with four adapters, asks many questions at once, and all
the while unloads adapters and loads them again. Each answer is held against what its adapter says when nobody else
asks. Of the clients some do not wait for their answer, some ask nonsense, and some tell what became of the answer.
"""

import argparse
import asyncio
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
import psutil

from benchmarks.faults.tiny_server import KEY, NAMES, tiny_server
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT, Server
from blora.client import AsyncClient, ClientError, DeadlineError, Prediction, RefusedError

RESULT = ROOT / "benchmarks" / "results" / "churn" / "result.json"
QUESTIONS = [f"question {k} {'and more ' * (k % 7)}" for k in range(40)]
AT_ONCE = 64
# Shares of the clients that leave, ask nonsense, and tell an outcome.
LEAVING, NONSENSE, TELLING = 0.05, 0.02, 0.1
LEAVING_AFTER_S = 0.02
# What the make-up of a batch may change in float32.
TOLERANCE = 1e-4
SAMPLE_EVERY_S = 10.0


async def measure(server: Server, n_requests: int, seconds: float) -> dict[str, Any]:
    """Return counts of the requests' outcomes, and the server's memory and open files.

    Args:
        server: one of `tiny_server`.
        n_requests: at least so many are sent.
        seconds: for at least so long.
    """
    found: Counter[str] = Counter()
    sent = 0
    held: list[tuple[float, int]] = []
    chance = random.Random(0)
    async with (
        AsyncClient(server.url, api_key=KEY, deadline_s=60) as client,
        httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as admin,
    ):
        for name in NAMES[1:]:
            (await admin.post("/v1/adapters", json={"name": name, "path": name})).raise_for_status()
        alone = {(name, asked): await client.predict(asked, adapter=name) for name in NAMES for asked in QUESTIONS}
        began = time.perf_counter()

        async def ask() -> str:
            name, asked, kind = chance.choice(NAMES), chance.choice(QUESTIONS), chance.random()
            if kind < NONSENSE:
                try:
                    response = await admin.post("/v1/predict", json={"prompt": asked, "n_samples": -1})
                except httpx.TransportError as error:
                    return type(error).__name__
                return "refused, for it was nonsense" if response.status_code == 422 else str(response.status_code)
            leaves = kind < NONSENSE + LEAVING
            try:
                answer = await client.predict(asked, adapter=name, deadline_s=LEAVING_AFTER_S if leaves else None)
            except RefusedError as error:
                return "refused, for its adapter was unloaded" if error.code == "unknown_adapter" else str(error.code)
            except DeadlineError as error:
                return "not waited for" if leaves else type(error).__name__
            except ClientError as error:
                return type(error).__name__
            if kind > 1 - TELLING:
                await _tell(client, answer)
            return _verdict(answer, alone[name, asked])

        async def ask_on() -> None:
            nonlocal sent
            while sent < n_requests or time.perf_counter() - began < seconds:
                sent += 1
                found[await ask()] += 1

        async def churn() -> None:
            while True:
                name = chance.choice(NAMES[1:])
                (await admin.delete(f"/v1/adapters/{name}")).raise_for_status()
                await asyncio.sleep(0.01)
                (await admin.post("/v1/adapters", json={"name": name, "path": name})).raise_for_status()
                found["reloads"] += 1
                await asyncio.sleep(0.05)

        async def watch() -> None:
            while True:
                held.append((server.memory_mib, psutil.Process(server.process.pid).num_fds()))
                await asyncio.sleep(SAMPLE_EVERY_S)

        beside = [asyncio.create_task(churn()), asyncio.create_task(watch())]
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(ask_on())
        for task in beside:
            if task.done():
                task.result()  # it ended before its time: raises what ended it
            task.cancel()
        wall = time.perf_counter() - began
    reloads = found.pop("reloads")
    return {
        "requests": sent,
        "outcomes": dict(found),
        "without_an_outcome": sent - found.total(),
        "reloads": reloads,
        "seconds": wall,
        "requests_per_s": sent / wall,
        "memory_mib": _halves([memory for memory, _ in held]),
        "handles": _halves([handles for _, handles in held]),
    }


async def _tell(client: AsyncClient, answer: Prediction) -> None:
    try:
        await client.feedback(answer, answer.top_choice)
    except RefusedError as error:
        if error.code != "unknown_prediction":  # its adapter may have gone since
            raise


def _verdict(answer: Prediction, alone: Prediction) -> str:
    pairs = zip(answer.probabilities, alone.probabilities, strict=True)
    apart = max(abs(some.probability - same.probability) for some, same in pairs)
    return "its own answer" if answer.adapter == alone.adapter and apart < TOLERANCE else "another answer"


def _halves(values: list[float] | list[int]) -> dict[str, Any]:
    """Means of the second and of the last quarter; the first is for growing to what is needed."""
    quarter = max(1, len(values) // 4)
    return {"early": mean(values[quarter : 2 * quarter] or values), "late": mean(values[-quarter:]), "all": values}


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--server", nargs="*", default=[], metavar="NAME=VALUE", help="flags of `blora serve`")
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    flags = dict(flag.split("=", 1) for flag in arguments.server)
    with tempfile.TemporaryDirectory() as name, tiny_server(Path(name), **flags) as server:
        result = asyncio.run(measure(server, arguments.requests, 60 * arguments.minutes))
    result |= {
        "clients": AT_ONCE,
        "tolerance": TOLERANCE,
        "flags": flags,
        **about(f"python -m benchmarks.faults.churn --requests {arguments.requests} --minutes {arguments.minutes:g}"),
    }
    write(arguments.json, result)


if __name__ == "__main__":
    main()
