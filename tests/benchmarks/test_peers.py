"""The regressions of `benchmarks.peers` learn what words and states say, and states are the same alone and in a batch."""

import pytest
import torch

from benchmarks.peers.__main__ import coverage_at
from benchmarks.peers.regressions import Part, mean_states, on_states, on_words
from blora.base_model import BaseModel, load_base_model

COLOURS = ("red", "green", "blue")


def part(n: int) -> Part:
    labels = [k % len(COLOURS) for k in range(n)]
    return Part([f"the {COLOURS[label]} thing number {k}" for k, label in enumerate(labels)], torch.tensor(labels))


@pytest.fixture(scope="module")
def base() -> BaseModel:
    return load_base_model("embedded", dtype="float32")


def test_a_regression_on_words_learns_them() -> None:
    fitted = on_words(part(60), part(30), part(21))
    assert fitted.log_probs.shape == (21, 3)
    assert bool((fitted.tempered().argmax(-1) == part(21).labels).all())
    assert fitted.inverse_penalty in (3, 10, 30, 100)


@pytest.mark.model
def test_a_regression_on_states_learns_them(base: BaseModel) -> None:
    fitted = on_states(base, part(60), part(30), part(21))
    assert bool((fitted.tempered().argmax(-1) == part(21).labels).all())


@pytest.mark.model
def test_a_texts_states_do_not_depend_on_the_batch(base: BaseModel) -> None:
    texts = ["short", "a text of some more words than the other one"]
    together = mean_states(base, texts)
    alone = torch.cat([mean_states(base, [text]) for text in texts])
    assert together.shape == (2, 5 * base.model.config.hidden_size)
    torch.testing.assert_close(together, alone, rtol=1e-3, atol=1e-3)


def test_coverage_is_the_largest_share_within_the_risk() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.7, 0.3], [0.6, 0.4]])
    labels = torch.tensor([0, 1, 0, 0])
    assert coverage_at(probs, labels, 0.25) == 1
    assert coverage_at(probs, labels, 0.2) == 0.25
    assert coverage_at(probs, labels.flip(0) * 0 + 1, 0.5) == 0
