"""Two hundred concurrent requests against the running server: is one lost, is one wrong, does memory grow, how long?

`python -m benchmarks.concurrent --json OUT` starts `blora serve` with the demo adapter, asks every question alone, then
all at once, three times.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
import psutil

from training.provenance import machine, revision

__all__ = ["Server", "ask_all", "disagreement", "questions", "serve"]

ROOT = Path(__file__).resolve().parent.parent
ADAPTER = ROOT / "examples" / "triage" / "adapter"
TICKETS = ROOT / "examples" / "triage" / "test.jsonl"
ROUNDS = 3
# Largest difference that the batch may make to a probability, in bfloat16.
TOLERANCE = 0.02
START_TIMEOUT_S = 180.0


class Server:
    """A running `blora serve`: its address and its process."""

    def __init__(self, url: str, process: "subprocess.Popen[bytes]") -> None:
        self.url = url
        self.process = process

    @property
    def memory_mib(self) -> float:
        """Resident memory, in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@contextmanager
def serve(port: int, *flags: str) -> Iterator[Server]:
    """Starts the server with the demo adapter, waits until it is ready, and stops it in the end."""
    command = [
        sys.executable,
        "-m",
        "blora.cli",
        "serve",
        "--port",
        str(port),
        "--adapters",
        f"triage={ADAPTER}",
        *flags,
    ]
    process = subprocess.Popen(command, cwd=ROOT)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        _wait_until_ready(server)
        yield server
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_ready(server: Server) -> None:
    end = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < end:
        if server.process.poll() is not None:
            raise RuntimeError(f"the server exited with status {server.process.returncode} before it was ready")
        try:
            if httpx.get(f"{server.url}/readyz").is_success:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise TimeoutError(f"the server was not ready after {START_TIMEOUT_S:g} s")


def questions(count: int) -> list[dict[str, Any]]:
    """The first tickets of the demo's test file, again from the start if there are fewer."""
    tickets = [json.loads(line)["prompt"] for line in TICKETS.read_text().splitlines()]
    return [{"prompt": prompt} for prompt in islice(tickets * (count // len(tickets) + 1), count)]


async def ask_all(url: str, bodies: Sequence[dict[str, Any]]) -> list[tuple[httpx.Response, float]]:
    """Sends every question at once; the responses in order, each with its seconds."""
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
    return max(abs(a["probability"] - b["probability"]) for a, b in pairs)


def measure(port: int, count: int) -> dict[str, Any]:
    """The result object."""
    bodies = questions(count)
    with serve(port) as server:
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
        "machine": machine(),
        "revision": revision(),
        "command": "python -m benchmarks.concurrent",
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/concurrent/result.json")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--port", type=int, default=8765)
    arguments = parser.parse_args()
    result = measure(arguments.port, arguments.requests)
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
