"""The image as it is run: how large, how soon it answers, what it answers, how it stops.

`CONTAINER=podman python -m benchmarks.image IMAGE --json OUT`; see `make image`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.container import inspect, start
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT

__all__ = ["QUESTION", "measure"]

QUESTION = "I was charged twice for order 4417, please refund one of them."


def measure(image: str) -> dict[str, Any]:
    """Return the result object."""
    inspected = inspect(image)
    with start(image) as container:
        torch = container.run("python", "-c", "import torch; print(torch.__version__)").stdout.strip()
        began = time.monotonic()
        answer = httpx.post(f"{container.url}/v1/predict", json={"prompt": QUESTION}, timeout=60).raise_for_status()
        answered = time.monotonic() - began
        info = httpx.get(f"{container.url}/info").json()
        began = time.monotonic()
        code = container.stop()
        stopped = time.monotonic() - began
        live, ready = container.live_s, container.ready_s
    return {
        "size_mib": inspected["Size"] / 2**20,
        "live_s": live,
        "ready_s": ready,
        "answer_s": answered,
        "question": QUESTION,
        "answer": answer.json(),
        "stop_s": stopped,
        "exit_code": code,
        "image_revision": info["revision"],
        "torch": torch,
        **about(f"python -m benchmarks.image {image}"),
    }


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("image")
    parser.add_argument("--json", type=Path, default=ROOT / "benchmarks/results/image/result.json")
    arguments = parser.parse_args()
    result = measure(arguments.image)
    write(arguments.json, result)


if __name__ == "__main__":
    main()
