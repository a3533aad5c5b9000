"""The search over variants: how it judges one."""

import pytest
import torch

from benchmarks.search import VARIANTS, crossfitted
from blora.decision.calibration import fit_temperature, metrics, temper


def test_every_variant_has_a_label_of_its_own() -> None:
    assert len({variant.label for variant in VARIANTS}) == len(VARIANTS)


def test_no_row_is_judged_at_a_temperature_that_its_own_label_helped_to_fit() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (60,), generator=generator)
    logits = torch.randn(2, 60, 3, generator=generator) + 2 * torch.nn.functional.one_hot(labels, 3)
    logits[:, ::2] *= 5  # overconfident: the even rows want a high temperature, the odd ones a low one
    log_probs = logits.log_softmax(-1)
    found = crossfitted(log_probs, labels)
    own = [fit_temperature(log_probs[:, k::2], labels[k::2]) for k in (0, 1)]
    assert own[0] > 1.5 * own[1]
    probs = torch.empty(60, 3, dtype=torch.float64)
    for k in (0, 1):
        probs[k::2] = temper(log_probs[:, k::2], own[1 - k]).mean(0)
    assert found["nll_tempered"] == pytest.approx(metrics(probs, labels).nll)
    assert found["nll"] == pytest.approx(metrics(log_probs.double().exp().mean(0), labels).nll)
