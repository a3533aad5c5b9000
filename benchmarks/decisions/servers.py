"""The servers that are compared, trained on the same rows.

`blora serve` with an adapter for each question, `blora serve` with one adapter for any question, and any2jev, in an
environment of its own.
"""

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.command_line import run_blora
from benchmarks.decisions.asking import Row, request_of
from benchmarks.server_process import QUESTIONS, TICKET, TRIAGE, demo, free_port, serve, wait_for
from blora.base_model import load_base_model

__all__ = [
    "serve_any2jev",
    "serve_blora",
    "serve_open",
    "train_any2jev",
    "train_blora",
    "train_open",
]

START_TIMEOUT_S = 300.0


def train_blora(folder: Path) -> float:
    """Train an adapter for each question on the rows of `moods/`, unless it is there, and return the processor time."""
    rows = TRIAGE / "moods"

    def train(name: str) -> None:
        command = ["train", "--data", str(rows / "train.jsonl"), "--validation", str(rows / "validation.jsonl")]
        command += ["--columns", f"label={name}", "--question", str(TRIAGE / "questions" / f"{name}.json")]
        command += ["--template", TICKET, "--dtype", "float32"]
        run_blora(*command, "--output", str(folder / name))

    return sum(_once(folder / name, partial(train, name)) for name in QUESTIONS)


@contextmanager
def serve_blora(folder: Path) -> Iterator[str]:
    """Serve the adapters as one model named triage, in float32, and return the address."""
    flags = demo({name: folder / name for name in QUESTIONS}) | {"dtype": "float32", "timeout_s": "600"}
    with serve(folder / "blora.log", **flags) as server:
        yield server.url


def train_open(folder: Path, rows: dict[str, Sequence[Row]]) -> float:
    """Train one adapter that answers any question on the same rows, unless it is there, and return the processor time.

    Args:
        folder: where the rows and the adapter go.
        rows: the rows of train and validation.
    """
    files = {name: folder / f"requests-{name}.jsonl" for name in rows}
    for name, part in rows.items():
        _write(files[name], map(request_of, part))
    command = ["train", "--data", str(files["train"]), "--validation", str(files["validation"]), "--dtype", "float32"]
    return _once(folder / "open", partial(run_blora, *command, "--output", str(folder / "open")))


@contextmanager
def serve_open(folder: Path) -> Iterator[str]:
    """Serve the adapter for any question as the model triage, in float32, and return the address."""
    flags = {"adapters": f"triage={folder / 'open'}", "dtype": "float32", "timeout_s": "600"}
    with serve(folder / "open.log", **flags) as server:
        yield server.url


def train_any2jev(program: Path, folder: Path, rows: Mapping[str, Iterable[dict[str, Any]]]) -> float:
    """Train any2jev by its defaults on requests and the same base model, unless it is there; return the processor time.

    Args:
        program: the program any2jev 0.1.
        folder: where the base model, the rows and the result go.
        rows: the requests of train and validation, with labels, as any2jev trains on them: see `labelled_request_of`.
    """
    base, out = folder / "base", folder / "any2jev"
    if not base.exists():
        _write_base(base)
    for name, part in rows.items():
        _write(folder / f"{name}.jsonl", part)
    data = ("--data", folder / "train.jsonl", "--val", folder / "validation.jsonl")
    command = [program, "train", "--base", base, *data, "--out", out]
    return _once(out, lambda: subprocess.run(command, check=True))


@contextmanager
def serve_any2jev(program: Path, folder: Path) -> Iterator[str]:
    """Serve the trained any2jev and return the address."""
    port = free_port()
    url, log = f"http://127.0.0.1:{port}", folder / "any2jev.log"
    with log.open("wb") as out:
        process = subprocess.Popen([program, "serve", folder / "any2jev", "--port", str(port)], stdout=out, stderr=out)
    try:
        wait_for(f"{url}/health", process, log, START_TIMEOUT_S)
        yield url
    finally:
        process.kill()
        process.wait()


def _once(output: Path, train: Callable[[], object]) -> float:
    """Train what is not there yet, and return the seconds of processor time that it took, then or now."""
    taken = output.with_name(f"{output.name}.seconds")
    if not taken.exists():
        shutil.rmtree(output, ignore_errors=True)  # of a run that was cut off
        began = _cpu_seconds()
        train()
        taken.write_text(str(_cpu_seconds() - began))
    return float(taken.read_text())


def _cpu_seconds() -> float:
    """Return the processor time of this process and of the programs that it has run, on all cores together."""
    used = os.times()
    return used.user + used.system + used.children_user + used.children_system


def _write_base(folder: Path) -> None:
    """Write the embedded base model with a tokenizer class that transformers 4 knows."""
    unfinished = folder.with_name("base.part")
    shutil.rmtree(unfinished, ignore_errors=True)
    base = load_base_model(dtype="float32", device="cpu")
    base.model.save_pretrained(unfinished)
    base.tokenizer.save_pretrained(unfinished)
    settings = unfinished / "tokenizer_config.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}))
    unfinished.rename(folder)


def _write(file: Path, rows: Iterable[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
