"""The decision servers' tables, beside any2jev."""

from collections.abc import Callable, Mapping
from typing import Any

from benchmarks.markdown import Columns, on_machine, record_table

__all__ = ["decisions"]


def _ms(n_questions: str) -> Callable[[Any], str]:
    """Return the column of a request's milliseconds."""
    return lambda row: f"{row['ms'][n_questions]:.0f} ms"


QUALITY: Columns = {
    "question": "{question}",
    "server": "{server}",
    "accuracy": "{accuracy:.3f}",
    "NLL": "{nll:.3f}",
    "ECE (its floor)": "{ece:.3f} ({ece_floor:.3f})",
    "AURC": "{aurc:.3f}",
    "wrong above 0.8 / 0.9": lambda row: f"{100 * row['wrong_above_0.8']:.1f} / {100 * row['wrong_above_0.9']:.1f} %",
    "answered at proved 5 / 10 %": "{answered_at_5:.2f} / {answered_at_10:.2f}",
}
COST: Columns = {
    "server": "{server}",
    "training, processor time": "{seconds:.0f} s",
    "1 question": _ms("1"),
    "3 questions": _ms("3"),
    "12 questions": _ms("12"),
    "questions a second": "{per_second:.0f}",
    "other answers if choices are reversed": lambda row: f"{100 * row['flips']:.1f} %",
}


def decisions(result: Mapping[str, Any]) -> str:
    """Return the tables of quality by question and of cost by server, and where they come from."""
    servers, rows, machine = result["servers"], result["rows"], result["machine"]
    quality = [
        {"question": question, "server": one["server"], **figures}
        for question in servers[0]["questions"]
        for one in servers
        for figures in [one["questions"][question]]
    ]
    about = (
        f"Trained on the {rows['train']} tickets of `moods/train.jsonl`, three questions each, on the "
        f"embedded base model in float32; {rows['validation']} tickets recalibrate, {rows['test']} test, "
        f"{rows['proof']} prove thresholds (delta {result['delta']:g}). The floor of an ECE is its mean if the "
        "probabilities were exactly right. Wrong above 0.8 / 0.9: the share of all questions with a wrong answer of at "
        "least that confidence. Milliseconds: medians of requests about one text of 15 tickets, servers in "
        f"turn. Questions a second: {result['n_clients']} clients, three questions a request. {on_machine(machine)}, "
        f"torch {machine['torch']}; revision {result['revision']}; `{result['command']}`."
    )
    return f"{record_table(quality, QUALITY, n_words=2)}\n\n{record_table(servers, COST)}\n\n{about}"
