"""The three answers that README.md shows: one that is sure, one that is torn, one to a question that belongs nowhere.

`python -m benchmarks.answers` asks a running server with the demo adapter and keeps what it said.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server_process import ROOT, serve
from training.provenance import machine, revision

__all__ = ["QUESTIONS", "RESULT"]

RESULT = ROOT / "benchmarks" / "results" / "answers" / "answers.json"
QUESTIONS = {
    "sure": "How do I download all our boards as a spreadsheet?",
    "ambiguous": "Our workspace is blocked because of an unpaid invoice, I paid, please let us in.",
    "out_of_scope": "Do you dream at night?",
}


def ask(url: str, prompt: str) -> dict[str, Any]:
    """The server's answer to one ticket."""
    response = httpx.post(f"{url}/v1/predict", json={"prompt": prompt}, timeout=60)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def main() -> None:
    """Asks and keeps."""
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log") as server:
        answers = {name: {"prompt": prompt, "answer": ask(server.url, prompt)} for name, prompt in QUESTIONS.items()}
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    made = {"machine": machine(), "revision": revision(), "command": "python -m benchmarks.answers"}
    RESULT.write_text(json.dumps({"answers": answers, **made}, indent=2) + "\n")


if __name__ == "__main__":
    main()
