"""Fifty thousand rows through `blora predict`, killed on the way: is each row there once, with its own answer?

`python -m benchmarks.faults.killed` asks an adapter of a tiny random model. Every question comes many times, so that
each answer can be held against that of a short run that nobody disturbed. `kill -9` ends the process while it starts,
after a third of the rows and after two thirds.
"""

import argparse
import json
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil

from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT

__all__ = ["kept", "measure"]

RESULT = ROOT / "benchmarks" / "results" / "killed" / "result.json"
QUESTIONS = [{"prompt": f"question {k} {'and more ' * (k % 7)}"} for k in range(500)]
# What the make-up of a batch may change in float32.
TOLERANCE = 1e-4


class Run:
    """A `blora predict` in a process of its own, watched.

    Args:
        folder: with the tiny model and its adapter.
        rows: the input.
        output: the answers.
    """

    def __init__(self, folder: Path, rows: Path, output: Path) -> None:
        command = [sys.executable, "-m", "blora.cli", "predict", str(rows), str(output)]
        command += ["--adapter", str(folder / "adapter"), "--base-model", str(folder / "base"), "--device", "cpu"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self.memory_mib: list[float] = []

    def kill_when(self, reached: Callable[[], bool]) -> None:
        """End the process by SIGKILL once its output has reached a number of rows.

        Raises:
            RuntimeError: if it ended by itself before.
        """
        while self._step() and not reached():
            pass
        self._process.kill()
        if self._process.wait() != -signal.SIGKILL:
            raise RuntimeError(f"it ended by itself with code {self._process.returncode}")

    def finish(self) -> None:
        """Wait for the process to end.

        Raises:
            RuntimeError: if that is not code 0.
        """
        while self._step():
            pass
        if self._process.wait():
            raise RuntimeError(f"it ended with code {self._process.returncode}")

    def _step(self) -> bool:
        time.sleep(0.05)
        if self._process.poll() is not None:
            return False
        self.memory_mib.append(psutil.Process(self._process.pid).memory_info().rss / 2**20)
        return True


def measure(folder: Path, n_rows: int) -> dict[str, Any]:
    """Return the result object.

    Args:
        folder: for the model, the rows and their answers.
        n_rows: how many rows.
    """
    from tests.scenarios import tiny_model, tiny_tokenizer
    from tests.server.engines.asking import write_adapter

    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    write_adapter(folder / "adapter", folder / "base", seed=0)
    few, rows, output = folder / "few.jsonl", folder / "rows.jsonl", folder / "answers.jsonl"
    _write(few, len(QUESTIONS))
    _write(rows, n_rows)
    Run(folder, few, folder / "undisturbed.jsonl").finish()

    begun = output.with_name(f"{output.name}.run.json")
    goals: list[Callable[[], bool]] = [
        begun.exists,  # it is about to load the model
        lambda: _lines(output) >= n_rows // 3,
        lambda: _lines(output) >= 2 * n_rows // 3,
    ]
    began = time.perf_counter()
    runs = []
    for reached in goals:
        runs.append(Run(folder, rows, output))
        runs[-1].kill_when(reached)
    runs.append(Run(folder, rows, output))
    runs[-1].finish()
    seconds = time.perf_counter() - began
    memory = runs[-1].memory_mib
    return {
        "rows": n_rows,
        "kills": len(goals),
        **kept(output, folder / "undisturbed.jsonl", n_rows),
        "seconds": seconds,
        "rows_per_s": n_rows / seconds,
        "memory_mib": {"middle": memory[len(memory) // 2], "most": max(max(run.memory_mib) for run in runs)},
    }


def kept(output: Path, undisturbed: Path, n_rows: int) -> dict[str, int | bool]:
    """How many rows are there once, more than once and not at all, in order or not, and how many have another's answer.

    Args:
        output: of the run that was killed.
        undisturbed: answers to `QUESTIONS`, in their order.
        n_rows: how many there should be.
    """
    alone = [_probabilities(line) for line in undisturbed.read_text().splitlines()]
    times = [0] * n_rows
    others = 0
    in_order, last = True, -1
    for line in output.read_text().splitlines():
        row = json.loads(line)["row"]
        times[row] += 1
        in_order, last = in_order and row > last, row
        found, own = _probabilities(line), alone[row % len(QUESTIONS)]
        others += max(abs(found[choice] - own[choice]) for choice in own) >= TOLERANCE
    return {
        "once": times.count(1),
        "never": times.count(0),
        "more_than_once": sum(n > 1 for n in times),
        "anothers_answer": others,
        "in_order": in_order,
    }


def _probabilities(line: str) -> dict[str, float]:
    return {entry["choice"]: entry["probability"] for entry in json.loads(line)["prediction"]["probabilities"]}


def _write(path: Path, n_rows: int) -> None:
    with path.open("w") as file:
        file.writelines(json.dumps(QUESTIONS[k % len(QUESTIONS)]) + "\n" for k in range(n_rows))


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def main() -> None:
    """Measures and writes."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=50_000)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        result = measure(Path(name), arguments.rows)
    result |= {
        "tolerance": TOLERANCE,
        **about(f"python -m benchmarks.faults.killed --rows {arguments.rows}"),
    }
    write(arguments.json, result)


if __name__ == "__main__":
    main()
