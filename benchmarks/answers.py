"""What README.md shows of the demo: three answers, and how often the policy withholds one.

`python -m benchmarks.answers` asks a running server with the demo adapter and keeps what it said.
"""

import json
import tempfile
from pathlib import Path
from typing import Any

import httpx

from benchmarks.server_process import ROOT, TRIAGE, serve
from blora.training.provenance import machine, revision

__all__ = ["QUESTIONS", "RESULT"]

RESULT = ROOT / "benchmarks" / "results" / "answers" / "answers.json"
QUESTIONS = {
    "sure": "I need a full dump of our workspace in JSON for the archive.",
    "ambiguous": "Does a full backup of our workspace cost extra?",
    "out_of_scope": "Jak długo gotować ziemniaki na sałatkę?",
}


def ask(url: str, prompt: str) -> dict[str, Any]:
    """Return the server's answer to one ticket."""
    response = httpx.post(f"{url}/v1/predict", json={"prompt": prompt}, timeout=60)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def withheld(url: str) -> dict[str, dict[str, float | int]]:
    """Of clear, ambiguous and out-of-scope tickets: how many are answered, and how many of those answers are right."""
    tickets = _tickets("test")
    kinds = {
        "clear": [ticket for ticket in tickets if not ticket["ambiguous"]],
        "ambiguous": [ticket for ticket in tickets if ticket["ambiguous"]],
        "out of scope": _tickets("out_of_scope"),
    }
    counts: dict[str, dict[str, float | int]] = {}
    for kind, rows in kinds.items():
        body = {"inputs": [{"prompt": row["prompt"]} for row in rows]}
        predictions = httpx.post(f"{url}/v1/predict", json=body, timeout=600).raise_for_status().json()["predictions"]
        right = [
            p["answer"] == row.get("label") for p, row in zip(predictions, rows, strict=True) if not p["abstained"]
        ]
        counts[kind] = {"n": len(rows), "answered": len(right), "right": sum(right)}
    return counts


def _tickets(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (TRIAGE / f"{name}.jsonl").read_text().splitlines()]


def main() -> None:
    """Asks and keeps."""
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log", timeout_s="600") as server:
        answers = {name: {"prompt": prompt, "answer": ask(server.url, prompt)} for name, prompt in QUESTIONS.items()}
        counts = withheld(server.url)
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    made = {"machine": machine(), "revision": revision(), "command": "python -m benchmarks.answers"}
    RESULT.write_text(json.dumps({"answers": answers, "withheld": counts, **made}, indent=2) + "\n")


if __name__ == "__main__":
    main()
