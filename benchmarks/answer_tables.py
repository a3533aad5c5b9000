"""The demo's answers, as README.md shows them."""

import json
from collections.abc import Mapping
from typing import Any

from benchmarks.answers import ASKED, RESULT, request_of
from benchmarks.markdown import Columns, record_table
from blora.scores import SCORES

__all__ = ["answer", "decisions", "questions", "withheld"]

# Fields of an answer of /v1/decisions that are shown.
SHOWN = ("name", "choice", "probability", "score", "mutual_information", "familiarity", "abstained")
URL = "http://127.0.0.1:8000"


def answer(name: str) -> str:
    """Return one question as a line to paste, and the answer without the numbers of each choice."""
    kept = _result()["answers"][name.removeprefix("answer_")]
    found = kept["answer"]
    shown = {key: found[key] for key in ("answer", "top_choice")}
    shown |= {name: round(found[name], 3) for name in SCORES if name in found}
    shown["abstain_reasons"] = _reasons(found)
    shown |= {"warnings": found["warnings"]} if "warnings" in found else {}
    lines = ",\n ".join(f"{json.dumps(key)}: {json.dumps(value)}" for key, value in shown.items())
    body = json.dumps({"prompt": kept["prompt"]}, ensure_ascii=False)
    return f"{_command('predict', body)}\n```json\n{{{lines}}}\n```"


def decisions(name: str) -> str:
    """Return three questions about one ticket as a command to paste, and their answers in short."""
    request = request_of(ASKED)
    for question in request["questions"]:
        for choice in question.get("choices", []):
            choice.pop("description", None)
    asked = ",\n  ".join(json.dumps(question) for question in request["questions"])
    body = f'{{"model": "triage", "input": {json.dumps(ASKED)}, "questions": [\n  {asked}]}}'
    lines = []
    for found in _result()["decisions"]["answers"]:
        shown = {key: _rounded(found[key]) for key in SHOWN if key in found}
        lines.append(json.dumps(shown | {"abstain_reasons": _reasons(found)}))
    answers = "\n".join(lines)
    return f"{_command('decisions', body)}\n```json\n{answers}\n```"


def questions(name: str) -> str:
    """Return the metrics of each question on two files of `moods/`, and the share that is answered."""
    columns: Columns = {
        "tickets": "{file}",
        "question": "{question}",
        "accuracy": "{accuracy:.3f}",
        "NLL": "{nll:.3f}",
        "ECE (its floor)": "{ece:.3f} ({ece_floor:.3f})",
        "Brier": "{brier:.3f}",
        "AURC": "{aurc:.3f}",
        "target for P(wrong \\| answered)": "{target_risk:.0%}",
        "answered": lambda row: f"{row['answered'] / row['n']:.0%}",
        "of these wrong": lambda row: f"{1 - row['right'] / row['answered']:.1%}",
    }
    rows = [
        row | {"file": file, "question": question}
        for file, found in _result()["questions"].items()
        for question, row in found.items()
    ]
    return record_table(rows, columns)


def withheld(name: str) -> str:
    """Return the table of the tickets of each kind that the demo's policy answers."""
    columns: Columns = {
        "tickets": "{kind}",
        "number": "{n}",
        "answered": lambda c: f"{c['answered'] / c['n']:.0%}",
        "of these right": lambda c: (
            "none can be" if c["kind"] == "out of scope" else f"{c['right'] / c['answered']:.0%}"
        ),
    }
    return record_table([count | {"kind": kind} for kind, count in _result()["withheld"].items()], columns)


def _result() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(RESULT.read_text())
    return found


def _command(path: str, body: str) -> str:
    return f"```sh\ncurl -s {URL}/v1/{path} -H 'content-type: application/json' -d '{body}'\n```"


def _reasons(found: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [{key: _rounded(value) for key, value in reason.items()} for reason in found["abstain_reasons"]]


def _rounded(value: Any) -> Any:
    return round(value, 3) if isinstance(value, float) else value
