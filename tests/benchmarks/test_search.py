"""The search over variants: on which rows it judges one, and how."""

import pytest
import torch

from benchmarks.calibration.treatments import Predictions, Treatments
from benchmarks.search import N_TRAIN, N_VALIDATION, VARIANTS, judge, parts_of
from blora.decision.metrics import metrics
from blora.decision.temperature import Recalibration, temper
from blora.training.rows.examples import Example, ExampleSet


def test_every_variant_has_a_label_of_its_own() -> None:
    assert len({variant.label for variant in VARIANTS}) == len(VARIANTS)


def test_a_variant_starts_from_one_that_was_trained_before() -> None:
    labels = [variant.label for variant in VARIANTS]
    for k, variant in enumerate(VARIANTS):
        assert variant.start is None or variant.start in labels[:k]


def test_rows_train_validate_or_judge_and_none_does_two_of_these() -> None:
    n_rows = N_TRAIN + N_VALIDATION + 50
    examples = ExampleSet("rows.jsonl", "sha256:0", tuple(_example(i) for i in range(n_rows)))
    parts = [[example.prompt for example in part.examples] for part in parts_of(examples)]
    assert [len(part) for part in parts] == [N_TRAIN, N_VALIDATION, 50]
    assert len({prompt for part in parts for prompt in part}) == n_rows


def _example(i: int) -> Example:
    return Example(
        prompt=f"question {i}", messages=None, choices=("a", "b"), label=0, kind="question", where=f"row {i}"
    )


def test_a_variant_is_judged_as_trained_and_in_the_treatments_of_other_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60,), generator=generator)
    log_probs = torch.randn(2, 60, 3, generator=generator).log_softmax(-1)
    treatments = Treatments(1.7, Recalibration(1.5, -0.3, 0.1))
    found = judge(Predictions(log_probs, labels, torch.full((60,), 4.0)), treatments)
    assert found["nll"] == pytest.approx(metrics(log_probs.double().exp().mean(0), labels).nll)
    assert found["nll_tempered"] == pytest.approx(metrics(temper(log_probs, 1.7).mean(0), labels).nll)
    recalibrated = metrics(temper(log_probs, 1.5 / 4**0.3, 0.1).mean(0), labels)
    assert found["ece_recalibrated"] == pytest.approx(recalibrated.ece)
    assert (found["temperature"], found["recalibration"]["lapse"]) == (1.7, 0.1)
