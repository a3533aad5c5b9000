"""How long is it from labelled rows to an answer?

`python -m benchmarks.head_training` trains a decision head with `blora train`, as a user does, on the first 250,
759 and 4,506 tickets of the demo, of which it sets some aside for validation, starts `blora serve` on the new adapter,
and asks it a question. Times begin with the command.
"""

import subprocess
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.markdown import on_machine
from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT, TICKET, TRIAGE, serve
from blora.adapter import read_config

__all__ = ["RESULTS", "times"]

RESULTS = ROOT / "benchmarks" / "results" / "head_training"
# Numbers of labelled tickets.
SIZES = (250, 759, 4506)
QUESTION = "I was charged twice this month."


def measure(folder: Path, n_rows: int) -> dict[str, Any]:
    """Train on the first tickets in a new folder, serve and ask, and return the seconds until each is done."""
    with (TRIAGE / "train.jsonl").open(encoding="utf-8") as file:
        lines = list(islice(file, n_rows))
    (folder / "train.jsonl").write_text("".join(lines), encoding="utf-8")
    rows = ["--data", folder / "train.jsonl"]
    question = ["--question", TRIAGE / "questions" / "queue.json", "--template", TICKET]
    began = time.perf_counter()
    command = [sys.executable, "-m", "blora.cli", "train", *rows, *question, "--output", folder / "adapter"]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    training_s = time.perf_counter() - began
    with serve(folder / "serve.log", adapters=f"triage={folder / 'adapter'}") as server:
        httpx.post(f"{server.url}/v1/predict", json={"prompt": QUESTION}, timeout=60).raise_for_status()
    answered_s = time.perf_counter() - began
    record = read_config(folder / "adapter").training
    return {"n_rows": len(lines), "training_s": training_s, "answered_s": answered_s, "dtype": record["dtype"]}


def times(results: list[dict[str, Any]]) -> str:
    """Return a sentence with the seconds from rows to an answer by number of rows, on each kind of processor."""
    of_processors = [
        ", ".join(f"{size['n_rows']:,} in {size['answered_s']:.0f} s" for size in result["sizes"])
        + f" in {result['sizes'][0]['dtype']}{' with AMX' if result.get('amx') else ''} "
        f"({on_machine(result['machine'])}, revision {result['revision']})"
        for result in results
    ]
    return (
        "From labelled tickets to the first answer of a server, in the dtype that the processor computes in: "
        f"{'; '.join(of_processors)}. `{results[0]['command']}`."
    )


def main() -> None:
    """Measure every size and write the result."""
    found = []
    for n_rows in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            found.append(measure(Path(folder), n_rows))
    amx = bool(torch.cpu.get_capabilities().get("amx_bf16"))
    result = {"sizes": found, "amx": amx, **about("python -m benchmarks.head_training")}
    write(RESULTS / f"{found[0]['dtype']}{'-amx' if amx else ''}.json", result)


if __name__ == "__main__":
    main()
