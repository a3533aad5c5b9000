"""Figures of the decision servers: the order of probabilities and labels, the floor of an ECE, and the tables."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from benchmarks.decisions.asking import LEVELS, Row, labels, probabilities, questions_of, request_of
from benchmarks.decisions.figures import quality
from benchmarks.decisions.table import decisions
from benchmarks.peers.figures import ece_floor
from blora.decision.metrics import ece
from blora.posterior.noise import generator_of
from blora.training.rows.examples import read_examples

ROWS = [Row("a", "security", True, "angry"), Row("b", "account access", False, "calm")]


def sure_of(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Answers that give every right answer the probability 1."""
    queues = list(questions_of(["queue"])["queue"]["criteria"])
    return [
        {
            "queue": {"probabilities": {queue: float(queue == row.queue) for queue in queues}},
            "urgent": {"noul": float(row.urgent)},
            "mood": {"probabilities": {str(k): float(level == row.mood) for k, level in enumerate(LEVELS)}},
        }
        for row in rows
    ]


@pytest.mark.parametrize("name", ["queue", "urgent", "mood"])
def test_labels_are_the_places_of_the_right_probabilities(name: str) -> None:
    probs, right = probabilities(sure_of(ROWS), name), labels(ROWS, name)
    assert probs.argmax(-1).tolist() == right.tolist()
    assert probs.sum(-1).tolist() == [1, 1]


def test_a_question_with_a_number_is_the_same_one_and_choices_may_be_turned() -> None:
    asked = questions_of(["mood", "mood2"])
    assert asked["mood"] == asked["mood2"]
    plain, turned = (questions_of(["queue"], turned=turned)["queue"]["criteria"] for turned in (False, True))
    assert list(plain) == list(turned)[::-1]
    assert plain == turned


def test_a_ticket_trains_an_open_adapter_on_the_questions_that_are_asked() -> None:
    examples = read_examples([request_of(row) for row in ROWS]).examples
    assert [example.choices[example.label] for example in examples if len(example.choices) == 7] == [
        "security: phishing, leaks, permissions, audits",
        "account access: logging in, passwords, single sign-on, invitations",
    ]
    asked = questions_of(["queue", "urgent", "mood"])
    for example, (name, question) in zip(examples, list(asked.items()) * 2, strict=True):
        assert question["instructions"] in (example.prompt or ""), name
        if name == "queue":
            assert list(example.choices) == [": ".join(one) for one in question["criteria"].items()]


def test_the_floor_is_the_ece_of_labels_that_follow_the_probabilities() -> None:
    probs = torch.rand(400, 3, generator=generator_of(1), dtype=torch.float64).softmax(-1)
    drawn = torch.multinomial(probs, 1, generator=generator_of(2))[:, 0]
    assert ece_floor(probs) == pytest.approx(ece(probs, drawn), abs=0.03)
    assert ece_floor(torch.eye(2, dtype=torch.float64)) == 0


def test_wrong_answers_that_survive_a_threshold_are_counted() -> None:
    probs = torch.tensor([[0.95, 0.05], [0.85, 0.15], [0.3, 0.7], [0.1, 0.9]], dtype=torch.float64)
    right = torch.tensor([1, 1, 1, 1])
    found = quality(probs, right, (probs, right))
    assert (found["wrong_above_0.8"], found["wrong_above_0.9"]) == (0.5, 0.25)
    assert found["accuracy"] == 0.5


def test_the_tables_name_each_question_and_server() -> None:
    rows = ROWS * 100
    figures = {
        name: quality(probabilities(sure_of(rows), name), labels(rows, name), (torch.eye(4), torch.arange(4)))
        for name in ("queue", "urgent", "mood")
    }
    server = {"ms": {"1": 5.0, "3": 6.0, "12": 7.0}, "per_second": 90.0, "flips": 0.25, "questions": figures}
    machine = {"cores": 2, "processor": "one", "torch": "2"}
    result = {
        "servers": [server | {"server": name, "seconds": 60.0} for name in ("blora", "other")],
        "rows": {"train": 540, "validation": 100, "test": 200, "proof": 4},
        "machine": machine,
        "revision": "abc",
        "command": "python",
        "delta": 0.05,
        "n_clients": 32,
    }
    shown = decisions(result)
    assert "| mood | other | 1.000 |" in shown
    assert "| blora | 60 s | 5 ms | 6 ms | 7 ms | 90 | 25.0 % |" in shown
