"""Adapters that come and go under load: is any answer lost, or another adapter's?

`python -m benchmarks.churn` serves a tiny random model with four adapters, asks many questions at once, and all the
while unloads adapters and loads them again. Each answer is held against what its adapter says when nobody else asks.
"""

import argparse
import asyncio
import json
import random
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server_process import ROOT, Server, serve
from blora.client import AsyncClient, ClientError, Prediction, RefusedError
from server.keys import line_of
from training.provenance import machine, revision

RESULT = ROOT / "benchmarks" / "results" / "churn" / "result.json"
NAMES = ("one", "two", "three", "four")
QUESTIONS = [f"question {k} {'and more ' * (k % 7)}" for k in range(40)]
KEY = "the key of whoever measures"
AT_ONCE = 64
# What the make-up of a batch may change in float32.
TOLERANCE = 1e-4


def prepare(folder: Path) -> None:
    """A base model and four adapters of it, all of random weights."""
    from tests.scenarios import tiny_model, tiny_tokenizer
    from tests.server.engines.asking import write_adapter

    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    for seed, name in enumerate(NAMES):
        write_adapter(folder / "adapters" / name, folder / "base", seed=seed)
    (folder / "keys").write_text(line_of("benchmark", "admin", KEY) + "\n")


async def measure(server: Server, n_requests: int) -> dict[str, Any]:
    """Counts of what became of the requests."""
    found: Counter[str] = Counter()
    chance = random.Random(0)
    async with (
        AsyncClient(server.url, api_key=KEY, deadline_s=60) as client,
        httpx.AsyncClient(base_url=server.url, headers={"authorization": f"Bearer {KEY}"}, timeout=60) as admin,
    ):
        for name in NAMES[1:]:
            (await admin.post("/v1/adapters", json={"name": name, "path": name})).raise_for_status()
        alone = {(name, asked): await client.predict(asked, adapter=name) for name in NAMES for asked in QUESTIONS}
        began = time.perf_counter()
        waiting = iter(range(n_requests))

        async def ask() -> None:
            for _ in waiting:
                name, asked = chance.choice(NAMES), chance.choice(QUESTIONS)
                try:
                    found[_verdict(await client.predict(asked, adapter=name), alone[name, asked])] += 1
                except RefusedError as error:
                    found["refused, for it was unloaded" if error.code == "unknown_adapter" else str(error.code)] += 1
                except ClientError as error:
                    found[type(error).__name__] += 1

        async def churn() -> None:
            while True:
                name = chance.choice(NAMES[1:])
                (await admin.delete(f"/v1/adapters/{name}")).raise_for_status()
                await asyncio.sleep(0.01)
                (await admin.post("/v1/adapters", json={"name": name, "path": name})).raise_for_status()
                found["reloads"] += 1
                await asyncio.sleep(0.05)

        churning = asyncio.create_task(churn())
        async with asyncio.TaskGroup() as group:
            for _ in range(AT_ONCE):
                group.create_task(ask())
        churning.cancel()
        seconds = time.perf_counter() - began
    reloads = found.pop("reloads")
    return {
        "requests": n_requests,
        "outcomes": dict(found),
        "without_an_outcome": n_requests - found.total(),
        "reloads": reloads,
        "requests_per_s": n_requests / seconds,
    }


def _verdict(answer: Prediction, alone: Prediction) -> str:
    pairs = zip(answer.probabilities, alone.probabilities, strict=True)
    apart = max(abs(some.probability - same.probability) for some, same in pairs)
    return "its own answer" if answer.adapter == alone.adapter and apart < TOLERANCE else "another answer"


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare(folder)
        flags = {
            "adapters": f"one={folder / 'adapters' / 'one'}",
            "default_adapter": "one",
            "base_model": str(folder / "base"),
            "adapter_root": str(folder / "adapters"),
            "api_keys": str(folder / "keys"),
            "log_level": "warning",
        }
        with serve(folder / "log", **flags) as server:
            result = asyncio.run(measure(server, arguments.requests))
            result["memory_mib"] = server.memory_mib
    result |= {
        "clients": AT_ONCE,
        "tolerance": TOLERANCE,
        "machine": machine(),
        "revision": revision(),
        "command": f"python -m benchmarks.churn --requests {arguments.requests}",
    }
    arguments.json.parent.mkdir(parents=True, exist_ok=True)
    arguments.json.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
