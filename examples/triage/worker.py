"""A triage worker: files the tickets it is sure of, and queues the others for a person.

    make run
    python examples/triage/worker.py examples/triage/test.jsonl filed.jsonl for_a_person.jsonl

A ticket is a line of JSON with a `prompt`. Each ends in one of the two files, whatever happens to the server meanwhile:
a ticket without an answer is one for a person, too.
"""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import Any

from blora.client import AbstainAbove, Client, ClientError, Prediction

# Beside the adapter's own calibrated policy: a person also sees tickets on which the draws, samples of the weights from
# the posterior, contradict each other.
DISAGREEMENT = AbstainAbove(mutual_information=0.2)


def verdict(outcome: Prediction | ClientError) -> dict[str, Any]:
    """Return the fields to write beside the ticket."""
    if isinstance(outcome, ClientError):
        return {"queue": None, "because": [type(outcome).__name__]}
    if outcome.abstained:
        return {
            "queue": None,
            "because": [reason.reason for reason in outcome.abstain_reasons],
            "suggested": outcome.top_choice,
        }
    return {"queue": outcome.answer, "confidence": round(outcome.confidence, 3)}


def main(tickets: Path, filed: Path, for_a_person: Path, url: str) -> None:
    """Sorts a file of tickets."""
    with tickets.open(encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines if line.strip()]
    with Client(url, abstain=DISAGREEMENT, deadline_s=120) as client:
        outcomes = client.predict_many([row["prompt"] for row in rows])
    with filed.open("w", encoding="utf-8") as sure, for_a_person.open("w", encoding="utf-8") as unsure:
        for row, outcome in zip(rows, outcomes, strict=True):
            found = verdict(outcome)
            file = unsure if found["queue"] is None else sure
            file.write(json.dumps({"ticket": row["prompt"]} | found, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = ArgumentParser(description="Sort a file of tickets by the answers of a server.")
    parser.add_argument("tickets", type=Path, help="JSONL with a prompt in each line")
    parser.add_argument("filed", type=Path, help="JSONL to write: tickets that have a queue")
    parser.add_argument("for_a_person", type=Path, help="JSONL to write: tickets for a person, with the reason")
    parser.add_argument("url", nargs="?", default="http://127.0.0.1:8000", help="address of the server (%(default)s)")
    main(**vars(parser.parse_args()))
