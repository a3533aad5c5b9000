"""Does the demo's server grow, under an hour of questions of every size?

`python -m benchmarks.faults.memory --dtype float32` asks a server single questions and batches, short and long, with
the adapter's choices and with others, from its bank and of fresh seeds, and nonsense. The server's resident memory is
sampled throughout; a line through the last half of the time, one mean a minute, says how fast it grows. What the server
keeps on purpose, and what is bounded by settings of its own, is bounded low, so that these bounds are met early.
"""

import argparse
import asyncio
import random
import tempfile
import time
from pathlib import Path
from statistics import linear_regression, mean
from typing import Any

import httpx

from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT, Server, serve

__all__ = ["slope"]

RESULTS = ROOT / "benchmarks" / "results" / "memory"
CLIENTS = 6
MINUTES = 60.0
SAMPLE_EVERY_S = 1.0
WORDS = ("the", "app", "invoice", "export", "login", "crash", "refund", "seat", "workspace", "token", "button", "why")
# Of what is kept on purpose: predictions that may get feedback, and what prompts begin with.
BOUNDED = {"max_feedback_predictions": "1000", "prefix_cache_mib": "8"}


def question(chance: random.Random) -> dict[str, Any]:
    """Return a question of any size, with any options."""
    n_words = min(600, int(chance.lognormvariate(3.0, 1.0)) + 1)
    asked: dict[str, Any] = {"prompt": " ".join(chance.choices(WORDS, k=n_words))}
    if chance.random() < 0.4:
        asked["choices"] = [f"{k} {chance.choice(WORDS)}" for k in range(chance.randint(2, 24))]
    if chance.random() < 0.4:
        asked["n_samples"] = chance.randint(1, 8)
    if chance.random() < 0.15:
        asked["seed"] = chance.randint(0, 2**31)
    return asked


def body(chance: random.Random) -> dict[str, Any]:
    """Return the body of a request: one question, several, or nonsense."""
    kind = chance.random()
    if kind < 0.1:
        return {"prompt": "x", "n_samples": -1}
    if kind < 0.25:
        return {"inputs": [question(chance) for _ in range(chance.randint(2, 12))]}
    return question(chance)


async def load(server: Server, seconds: float) -> tuple[int, list[tuple[float, float]]]:
    """Ask for so long; return the number of requests, and (seconds, MiB) samples of the memory."""
    chance = random.Random(0)
    sent = 0
    samples: list[tuple[float, float]] = []
    began = time.monotonic()

    async def ask(client: httpx.AsyncClient) -> None:
        nonlocal sent
        while time.monotonic() - began < seconds:
            await client.post("/v1/predict", json=body(chance))
            sent += 1

    async def watch() -> None:
        while time.monotonic() - began < seconds:
            samples.append((time.monotonic() - began, server.memory_mib))
            await asyncio.sleep(SAMPLE_EVERY_S)

    async with httpx.AsyncClient(base_url=server.url, timeout=120) as client, asyncio.TaskGroup() as group:
        group.create_task(watch())
        for _ in range(CLIENTS):
            group.create_task(ask(client))
    return sent, samples


def slope(minutes: list[float]) -> tuple[float, float]:
    """Return the slope of a line through one value a minute, and its standard error, both a minute.

    >>> slope([1.0, 2.0, 3.0])
    (1.0, 0.0)
    """
    at = list(range(len(minutes)))
    found = linear_regression(at, minutes)
    residual = sum((y - found.intercept - found.slope * x) ** 2 for x, y in zip(at, minutes, strict=True))
    spread = sum((x - mean(at)) ** 2 for x in at)
    return found.slope, float((residual / max(1, len(at) - 2) / spread) ** 0.5)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dtype", choices=["float32", "bfloat16"], required=True)
    parser.add_argument("--minutes", type=float, default=MINUTES)
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "log", dtype=arguments.dtype, **BOUNDED) as server,
    ):
        sent, samples = asyncio.run(load(server, 60 * arguments.minutes))
    n_minutes = int(arguments.minutes)
    each = [mean(mib for second, mib in samples if int(second // 60) == k) for k in range(n_minutes)]
    growth, error = slope(each[n_minutes // 2 :])
    result = {
        "dtype": arguments.dtype,
        "requests": sent,
        "minutes": n_minutes,
        "mib_each_minute": each,
        "slope_mib_per_minute": growth,
        "slope_error": error,
        **about(f"python -m benchmarks.faults.memory --dtype {arguments.dtype}"),
    }
    write(RESULTS / f"{arguments.dtype}.json", result)


if __name__ == "__main__":
    main()
