"""Where the server's own threads spend their time under load, sampled from outside by py-spy.

Threads of the math libraries are not Python's and are not sampled; they work when the forward pass does.
"""

import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from benchmarks.server_process import Server

__all__ = ["FORWARD", "STAGES", "profile", "stage_of"]

FORWARD = "forward passes"
# The innermost frame that one of these names begins says which stage a sample belongs to.
STAGES: dict[str, tuple[str, ...]] = {
    FORWARD: ("blora/inference/", "blora/posterior/", "server/engines/", "torch/", "transformers/"),
    "tokens and packing": ("blora/inference/packing", "transformers/token", "tokenizers/", "jinja2/"),
    "HTTP": ("uvicorn/", "h11/", "asyncio/selector_events", "asyncio/streams", "server/http/"),
    "JSON and validation": (
        "pydantic/",
        "fastapi/",
        "starlette/",
        "json/",
        "server/schemas/",
        "server/http/strict_json",
    ),
    "queue and batching": ("server/scheduling/",),
    "uncertainty, policy, answer": ("blora/decision/", "blora/scores", "blora/client/answers", "server/prediction/"),
    "metrics, log, feedback": ("prometheus_client/", "server/monitoring/", "logging/"),
}
_RATE = 200
_MOST_SECONDS = 600


def profile(server: Server, under: Callable[[], Any]) -> dict[str, float]:
    """Shares of the samples of busy threads by stage, while something runs.

    Args:
        server: is sampled.
        under: asks it.

    Raises:
        RuntimeError: if py-spy may not look at the process.
    """
    with tempfile.TemporaryDirectory() as folder:
        out, log = Path(folder) / "stacks", Path(folder) / "log"
        command = [str(Path(sys.executable).with_name("py-spy")), "record", "--pid", str(server.process.pid)]
        command += ["--format", "raw", "--full-filenames", "--nonblocking", "--output", str(out)]
        command += ["--rate", str(_RATE), "--duration", str(_MOST_SECONDS)]
        with log.open("wb") as said:
            sampler = subprocess.Popen(command, stdout=said, stderr=said)
        try:
            under()
        finally:
            sampler.send_signal(2)  # it writes at an interrupt what it has
            sampler.wait(60)
        if not out.is_file():
            raise RuntimeError(f"got no samples, expected some: py-spy said {log.read_text()!r}")
        counts: Counter[str] = Counter()
        for line in out.read_text().splitlines():
            stack, _, count = line.rpartition(" ")
            counts[stage_of(stack.split(";"))] += int(count)
    total = counts.total()
    return {stage: counts[stage] / total for stage in [*STAGES, "else"]}


def stage_of(frames: Sequence[str]) -> str:
    """Return the stage of a stack, outermost frame first, each `function (file:line)`."""
    for frame in reversed(frames):
        file = frame.partition("(")[2]
        found = [(len(part), stage) for stage, parts in STAGES.items() for part in parts if f"/{part}" in f"/{file}"]
        if found:
            return max(found)[1]
    return "else"
