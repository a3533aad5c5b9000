"""The server under load: clients that each ask one question after the other, and where its time goes meanwhile."""

import asyncio
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from statistics import quantiles
from typing import Any

import httpx
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server_process import Server, serve
from benchmarks.serving.profile import profile

__all__ = ["load", "profiled"]

PROFILED_CLIENTS = 16


def load(adapter: Path, bodies: Sequence[dict[str, Any]], clients: Sequence[int]) -> list[dict[str, Any]]:
    """Return throughput and latency at several numbers of clients, and the share of time that the model computed.

    Args:
        adapter: what is served.
        bodies: the questions; the clients share them.
        clients: how many ask at once.
    """
    with _warm_server(adapter, bodies) as server:
        return [asyncio.run(_measured(server, bodies, n)) for n in clients]


def profiled(adapter: Path, bodies: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Shares of the time of the server's own threads by stage, with enough clients to keep it busy.

    Args:
        adapter: what is served.
        bodies: the questions; the clients share them.
    """
    with _warm_server(adapter, bodies) as server:
        return profile(server, lambda: asyncio.run(_ask(server, bodies, PROFILED_CLIENTS)))


@contextmanager
def _warm_server(adapter: Path, bodies: Sequence[dict[str, Any]]) -> Iterator[Server]:
    with (
        tempfile.TemporaryDirectory() as folder,
        serve(Path(folder) / "log", adapters=f"late={adapter}", timeout_s="600") as server,
    ):
        asyncio.run(_ask(server, bodies[:8], 2))
        yield server


async def _measured(server: Server, bodies: Sequence[dict[str, Any]], n_clients: int) -> dict[str, Any]:
    before = _computed(server)
    began = time.perf_counter()
    answers = await _ask(server, bodies, n_clients)
    wall = time.perf_counter() - began
    computed = _computed(server) - before
    latencies = [seconds for _, seconds in answers]
    percentiles = quantiles(latencies, n=100)
    return {
        "clients": n_clients,
        "requests": len(answers),
        "failed": sum(response.status_code != httpx.codes.OK for response, _ in answers),
        "requests_per_s": len(answers) / wall,
        "p50_ms": 1e3 * percentiles[49],
        "p99_ms": 1e3 * percentiles[98],
        "compute_share": computed / wall,
        "mean_draws": sum(response.json()["n_samples"] for response, _ in answers) / len(answers),
        "memory_mib": server.memory_mib,
    }


async def _ask(server: Server, bodies: Sequence[dict[str, Any]], n_clients: int) -> list[tuple[httpx.Response, float]]:
    waiting = list(reversed(bodies))
    answers: list[tuple[httpx.Response, float]] = []
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:

        async def work() -> None:
            while waiting:
                body = waiting.pop()
                began = time.perf_counter()
                response = await client.post("/v1/predict", json=body)
                answers.append((response, time.perf_counter() - began))

        await asyncio.gather(*(work() for _ in range(n_clients)))
    return answers


def _computed(server: Server) -> float:
    """Seconds of all forward passes so far."""
    text = httpx.get(f"{server.url}/metrics").text
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == "blora_forward_seconds_sum":
                return sample.value
    raise RuntimeError("got no blora_forward_seconds_sum in /metrics, expected one")
