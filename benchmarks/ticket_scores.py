"""Scores of the demo's answers to its test tickets and to foreign ones, ticket by ticket, for docs/pictures.

`python -m benchmarks.ticket_scores` answers them in this process and keeps the scores.
"""

import blora
from benchmarks.result_files import about, read_lines, write
from benchmarks.server_process import ADAPTER, ROOT, TRIAGE
from blora.scores import SCORES

__all__ = ["RESULT"]

RESULT = ROOT / "benchmarks" / "results" / "ticket_scores" / "demo.json"


def main() -> None:
    """Answer every ticket and write the result."""
    model = blora.load(ADAPTER, dtype="float32")
    kept = []
    for name in ("test", "out_of_scope"):
        tickets = read_lines(TRIAGE / f"{name}.jsonl")
        for ticket, answer in zip(tickets, model.predict([t["prompt"] for t in tickets]), strict=True):
            kind = "out of scope" if "label" not in ticket else "ambiguous" if ticket["ambiguous"] else "clear"
            scores = {score: float(f"{getattr(answer, score):.4g}") for score in SCORES}
            right = answer.top_choice == ticket.get("label")
            kept.append({"kind": kind, "right": right, "answered": not answer.abstained} | scores)
    result = {
        "policy": model.predict("Where is my invoice?").policy.model_dump(exclude_none=True),
        "tickets": kept,
        "base_model": model.base.name,
        "dtype": model.base.dtype_name,
        **about("python -m benchmarks.ticket_scores"),
    }
    write(RESULT, result)


if __name__ == "__main__":
    main()
