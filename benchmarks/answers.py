"""Answers of the demo for README.md: to three tickets, to three questions about one, and to all test tickets.

`python -m benchmarks.answers` asks a running server with the demo's adapters in float32, in which every processor
computes, and keeps its answers, with the metrics of each of the three questions.
"""

import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import httpx
import torch

from benchmarks.decisions.asking import labels, read_rows
from benchmarks.peers.figures import ece_floor
from benchmarks.result_files import about, read_lines, write
from benchmarks.server_process import QUESTIONS, ROOT, TRIAGE, demo, serve
from blora.decision.metrics import metrics

__all__ = ["ASKED", "RESULT", "TICKETS", "ask_all", "request_of"]

RESULT = ROOT / "benchmarks" / "results" / "answers" / "answers.json"
TICKETS = {
    "sure": "I need a full dump of our workspace in JSON for the archive.",
    "ambiguous": "Does a full backup of our workspace cost extra?",
    "out_of_scope": "Jak długo gotować ziemniaki na sałatkę?",
}


# Tickets in one request: the default limit.
AT_ONCE = 256
# The ticket about which all three questions are asked.
ASKED = "You charged our card twice for March. I have asked three times for the refund, this is ridiculous."


def ask(url: str, prompt: str) -> dict[str, Any]:
    """Return the server's answer to one ticket."""
    response = httpx.post(f"{url}/v1/predict", json={"prompt": prompt}, timeout=60)
    response.raise_for_status()
    answer: dict[str, Any] = response.json()
    return answer


def ask_all(url: str, tickets: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return the server's answers to tickets, which go in as few requests as the default limit allows."""
    found: list[dict[str, Any]] = []
    for start in range(0, len(tickets), AT_ONCE):
        body = {"inputs": [{"prompt": ticket["prompt"]} for ticket in tickets[start : start + AT_ONCE]]}
        response = httpx.post(f"{url}/v1/predict", json=body, timeout=600).raise_for_status()
        found += response.json()["predictions"]
    return found


def withheld(url: str) -> dict[str, dict[str, float | int]]:
    """Of clear, ambiguous and out-of-scope tickets: how many are answered, and how many of those answers are right."""
    tickets = read_lines(TRIAGE / "test.jsonl")
    kinds = {
        "clear": [ticket for ticket in tickets if not ticket["ambiguous"]],
        "ambiguous": [ticket for ticket in tickets if ticket["ambiguous"]],
        "out of scope": read_lines(TRIAGE / "out_of_scope.jsonl"),
    }
    counts: dict[str, dict[str, float | int]] = {}
    for kind, rows in kinds.items():
        pairs = zip(ask_all(url, rows), rows, strict=True)
        right = [found["answer"] == row.get("label") for found, row in pairs if not found["abstained"]]
        counts[kind] = {"n": len(rows), "answered": len(right), "right": sum(right)}
    return counts


def request_of(text: str) -> dict[str, Any]:
    """Return the body of a request to POST /v1/decisions with the three questions about a text."""
    questions = [json.loads((TRIAGE / "questions" / f"{name}.json").read_text()) for name in QUESTIONS]
    return {"model": "triage", "input": text, "questions": questions}


def decide(url: str, texts: Sequence[str]) -> list[dict[str, Any]]:
    """Return the server's response to the three questions about each text."""
    with httpx.Client(base_url=url, timeout=600) as client:
        found = [client.post("/v1/decisions", json=request_of(text)) for text in texts]
    return [response.raise_for_status().json() for response in found]


def judged(url: str, file: str) -> dict[str, dict[str, float | int]]:
    """Return the metrics of each question on the tickets of a file in `moods/`, and how many of them are answered."""
    rows = read_rows(file)
    responses = decide(url, [row.prompt for row in rows])
    found: dict[str, dict[str, float | int]] = {}
    for place, name in enumerate(QUESTIONS):
        answers = [response["answers"][place] for response in responses]
        right = labels(rows, name)
        if name == "urgent":
            yes = torch.tensor([answer["probability"] for answer in answers], dtype=torch.float64)
            probs = torch.stack([1 - yes, yes], -1)
        else:
            ordered = [sorted(answer["probabilities"], key=lambda one: str(one["value"])) for answer in answers]
            probs = torch.tensor([[one["probability"] for one in row] for row in ordered], dtype=torch.float64)
        given = torch.tensor([not answer["abstained"] for answer in answers])
        correct = probs.argmax(-1) == right
        policy = answers[0]["policy"]
        found[name] = {
            "n": len(rows),
            **metrics(probs, right).to_dict(),
            "ece_floor": ece_floor(probs),
            "target_risk": policy["target_risk"],
            "answered": int(given.sum()),
            "right": int((given & correct).sum()),
        }
    return found


def main() -> None:
    """Asks and keeps."""
    flags = demo() | {"timeout_s": "600", "dtype": "float32"}
    with tempfile.TemporaryDirectory() as folder, serve(Path(folder) / "log", **flags) as server:
        answers = {name: {"prompt": prompt, "answer": ask(server.url, prompt)} for name, prompt in TICKETS.items()}
        counts = withheld(server.url)
        [asked] = decide(server.url, [ASKED])
        questions = {file: judged(server.url, file) for file in ("test", "harder")}
    found = {"answers": answers, "withheld": counts, "decisions": asked, "questions": questions}
    write(RESULT, found | about("python -m benchmarks.answers"))


if __name__ == "__main__":
    main()
