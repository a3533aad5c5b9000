"""What do the cheapest methods get on the rows of ours?

`python -m benchmarks.peers` fits a logistic regression on the words of the texts and one on the frozen base model's
states. The demo's adapter answers the demo's tickets beside them. Validation rows come out of the training rows where
a set has none of its own. All of it is deterministic: there are no seeds.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import blora
from benchmarks.peers.regressions import Fitted, Part, on_states, on_words
from benchmarks.server_process import ADAPTER, ROOT, TRIAGE
from blora.base_model import load_base_model
from blora.decision.curves import risk_coverage
from blora.decision.metrics import metrics
from blora.training.provenance import machine, revision

RESULTS = ROOT / "benchmarks" / "results" / "peers"
DATA = ROOT.parent / "shared" / "data"
TICKET = "Support ticket: {}\nQueue:"
# One in seven training rows validates where a set has no validation rows.
EVERY = 7


def coverage_at(probs: Tensor, labels: Tensor, risk: float) -> float:
    """Return the largest share of answers, most confident first, whose error is at most a risk on these very rows.

    >>> coverage_at(torch.tensor([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]]), torch.tensor([0, 1, 1]), 0.1)
    0.6666666666666666
    """
    confidence, top = probs.max(-1)
    curve = risk_coverage(confidence, top == labels, points=len(labels))
    return max((coverage for coverage, error in curve if error <= risk), default=0.0)


def _row(method: str, probs: Tensor, labels: Tensor, clear: Tensor | None, seconds: float | None) -> dict[str, Any]:
    right = probs.argmax(-1) == labels
    return {
        "method": method,
        **metrics(probs, labels).to_dict(),
        "accuracy_clear": right[clear].double().mean().item() if clear is not None else None,
        "coverage_at_5": coverage_at(probs, labels, 0.05),
        "coverage_at_10": coverage_at(probs, labels, 0.10),
        "training_s": seconds,
    }


def _read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def _sets() -> Iterator[tuple[str, str, list[list[dict[str, Any]]]]]:
    """Yield each set's name, template and rows to train, validate and test with."""
    yield "demo", TICKET, [_read(TRIAGE / f"{part}.jsonl") for part in ("train", "validation", "test")]
    if not DATA.exists():
        return
    rows = _read(DATA / "banking77_train.jsonl")
    held_out = [row for k, row in enumerate(rows) if k % EVERY == 0]
    train = [row for k, row in enumerate(rows) if k % EVERY]
    yield "banking77", "{}", [train, held_out, _read(DATA / "banking77_test.jsonl")]
    yield "clinc150", "{}", [_read(DATA / f"clinc150_{part}.jsonl") for part in ("train", "val", "test")]


def _demo(rows: list[dict[str, Any]], labels: list[str]) -> Tensor:
    """Return the probabilities (N, C) of the demo's adapter, as served."""
    model = blora.load(ADAPTER)
    place = {label: k for k, label in enumerate(labels)}
    probs = torch.zeros(len(rows), len(labels))
    for k, prediction in enumerate(model.predict([row["prompt"] for row in rows])):
        for entry in prediction.probabilities:
            probs[k, place[entry.choice]] = entry.probability
    return probs


def measure(name: str, template: str, parts: list[list[dict[str, Any]]]) -> dict[str, Any]:
    """Return every method's metrics on a set."""
    labels = sorted({row["label"] for row in parts[0]})

    def part_of(rows: list[dict[str, Any]], form: str) -> Part:
        return Part(
            [form.format(row["prompt"]) for row in rows], torch.tensor([labels.index(row["label"]) for row in rows])
        )

    test = part_of(parts[2], "{}").labels
    clear = torch.tensor([not row["ambiguous"] for row in parts[2]]) if name == "demo" else None
    base = load_base_model("embedded", dtype="float32")
    methods: dict[str, Callable[[], Fitted]] = {
        "TF-IDF regression": lambda: on_words(*(part_of(rows, "{}") for rows in parts)),
        "regression on frozen states": lambda: on_states(base, *(part_of(rows, template) for rows in parts)),
    }
    found = []
    for method, fit in methods.items():
        began = time.perf_counter()
        fitted = fit()
        seconds = time.perf_counter() - began
        found.append(_row(method, fitted.log_probs.exp(), test, clear, seconds))
        found.append(_row(f"{method}, with temperature", fitted.tempered(), test, clear, seconds))
    if name == "demo":
        found.append(_row("Bayesian-LoRA, as served", _demo(parts[2], labels), test, clear, None))
    return {
        "set": name,
        "n_train": len(parts[0]),
        "n_validation": len(parts[1]),
        "n_test": len(parts[2]),
        "rows": found,
    }


def main() -> None:
    """Measure every set and write its result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", help="name of one set")
    only = parser.parse_args().only
    RESULTS.mkdir(parents=True, exist_ok=True)
    for name, template, parts in _sets():
        if only in (None, name):
            result = measure(name, template, parts)
            result |= {"machine": machine(), "revision": revision(), "command": "python -m benchmarks.peers"}
            (RESULTS / f"{name}.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
