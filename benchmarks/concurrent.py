"""Two hundred concurrent requests against the running server: is one lost, is one wrong, does memory grow, how long?

`python -m benchmarks.concurrent --json OUT` starts `blora serve` with the demo adapter, asks every question alone, then
all at once, three times.
"""

import argparse
import asyncio
import tempfile
import time
from collections.abc import Sequence
from itertools import islice
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx

from benchmarks.result_files import about, read_lines, write
from benchmarks.server_process import ROOT, TRIAGE, serve

__all__ = ["ask_all", "disagreement", "measure", "questions"]

ROUNDS = 3
# Largest difference that the batch may make to a probability, in bfloat16.
TOLERANCE = 0.02


def questions(count: int) -> list[dict[str, Any]]:
    """Return the first tickets of the demo's test file, repeated if there are too few."""
    tickets = [ticket["prompt"] for ticket in read_lines(TRIAGE / "test.jsonl")]
    return [{"prompt": prompt} for prompt in islice(tickets * (count // len(tickets) + 1), count)]


async def ask_all(url: str, bodies: Sequence[dict[str, Any]]) -> list[tuple[httpx.Response, float]]:
    """Send every question at once and return the responses in order, each with its seconds."""
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=600, limits=limits) as client:

        async def ask(body: dict[str, Any]) -> tuple[httpx.Response, float]:
            began = time.perf_counter()
            response = await client.post("/v1/predict", json=body)
            return response, time.perf_counter() - began

        return list(await asyncio.gather(*map(ask, bodies)))


def disagreement(one: dict[str, Any], other: dict[str, Any]) -> float:
    """Largest difference of a probability between two answers to the same question."""
    pairs = zip(one["probabilities"], other["probabilities"], strict=True)
    return float(max(abs(a["probability"] - b["probability"]) for a, b in pairs))


def measure(count: int) -> dict[str, Any]:
    """Return the result object."""
    bodies = questions(count)
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log", timeout_s="600") as server:
        alone = [httpx.post(f"{server.url}/v1/predict", json=body, timeout=60).json() for body in bodies]
        latencies: list[float] = []
        memory: list[float] = []
        lost = wrong = 0
        worst = 0.0
        began = time.perf_counter()
        for _ in range(ROUNDS):
            answered = asyncio.run(ask_all(server.url, bodies))
            for (response, seconds), reference in zip(answered, alone, strict=True):
                latencies.append(seconds)
                if response.status_code != httpx.codes.OK:
                    lost += 1
                    continue
                difference = disagreement(response.json(), reference)
                worst = max(worst, difference)
                wrong += difference > TOLERANCE
            memory.append(server.memory_mib)
        elapsed = time.perf_counter() - began
        info = httpx.get(f"{server.url}/info").json()
    percentiles = quantiles(latencies, n=100)
    return {
        "n_requests": count,
        "rounds": ROUNDS,
        "lost": lost,
        "wrong": wrong,
        "tolerance": TOLERANCE,
        "worst_difference": worst,
        "p50_s": percentiles[49],
        "p99_s": percentiles[98],
        "requests_per_s": ROUNDS * count / elapsed,
        "memory_mib": memory,
        "memory_growth_mib": memory[-1] - memory[0],
        "n_samples": alone[0]["n_samples"],
        "dtype": info["model"]["dtype"],
        **about("python -m benchmarks.concurrent"),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/concurrent/result.json")
    parser.add_argument("--requests", type=int, default=200)
    arguments = parser.parse_args()
    result = measure(arguments.requests)
    write(arguments.json, result)


if __name__ == "__main__":
    main()
