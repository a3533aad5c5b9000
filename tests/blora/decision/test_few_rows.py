"""Recalibration on few rows and on many, held against questions whose true probabilities are known."""

from dataclasses import dataclass
from statistics import fmean

import pytest
import torch
from torch import Tensor

from blora.decision import temperature
from blora.decision.metrics import nll
from blora.decision.temperature import Recalibration, fit_recalibration, fit_temperature

POWERS = (-1.0, 1.0)
MEAN_LOG_LENGTH = 2.2  # of lengths that are uniform between 1 and 21


@dataclass(frozen=True)
class World:
    """A model whose log-probabilities are spoilt by what this recalibration mends, temperature at the mean length."""

    n_choices: int
    spread: float  # of the logits: how sure the model is
    spoilt_by: Recalibration

    def rows(self, n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
        """Log-probabilities (1, n, C), labels and lengths."""
        generator = torch.Generator().manual_seed(seed)
        logits = self.spread * torch.randn(n, self.n_choices, generator=generator, dtype=torch.float64)
        labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
        guessed = torch.rand(n, generator=generator) < self.spoilt_by.lapse
        labels = torch.where(guessed, torch.randint(self.n_choices, (n,), generator=generator), labels)
        lengths = 1 + 20 * torch.rand(n, generator=generator, dtype=torch.float64)
        scale = self.spoilt_by.temperature * (self.spoilt_by.power * (lengths.log() - MEAN_LOG_LENGTH)).exp()
        return (logits * scale[:, None]).log_softmax(-1)[None], labels, lengths


WORLDS = {
    "calibrated and often wrong": World(4, 2.0, Recalibration()),
    "calibrated and mostly right": World(2, 5.0, Recalibration()),
    "a little too sure": World(4, 2.0, Recalibration(1.5)),
    "far too sure": World(4, 0.5, Recalibration(20.0)),
    "too unsure": World(3, 4.0, Recalibration(0.5)),
    "all three at once": World(4, 2.0, Recalibration(1.3, -0.3, 0.1)),
}


def gain(world: World, n: int, n_seeds: int) -> float:
    """By how much the NLL of other questions falls in the mean over sets of n validation rows."""
    log_probs, labels, lengths = world.rows(2000, seed=10**6)

    def held_out(fitted: Recalibration) -> float:
        return nll(fitted.of(log_probs, lengths).mean(0), labels)

    before = held_out(Recalibration())
    return before - fmean(held_out(fit_recalibration(*world.rows(n, seed), powers=POWERS)) for seed in range(n_seeds))


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize(("n", "n_seeds"), [(6, 10), (20, 6), (60, 4), (500, 2)])
def test_answers_get_no_worse_however_few_the_rows(name: str, n: int, n_seeds: int) -> None:
    assert gain(WORLDS[name], n, n_seeds) > -0.005  # nats


@pytest.mark.parametrize("name", WORLDS)
def test_many_rows_are_fitted_as_if_there_were_no_prior(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    held_back = gain(WORLDS[name], 500, 2)
    monkeypatch.setattr(temperature, "_penalty", lambda value: 0 * value)
    monkeypatch.setattr(temperature, "LAPSE_PRIOR", 1)
    assert held_back == pytest.approx(gain(WORLDS[name], 500, 2), abs=0.005)


def test_six_rows_that_are_all_right_leave_the_temperature() -> None:
    sure = torch.tensor([[[0.88, 0.12]] * 6], dtype=torch.float64).log()
    labels = torch.zeros(6, dtype=torch.long)
    for found in (fit_temperature(sure, labels), fit_recalibration(sure, labels, torch.ones(6), POWERS).temperature):
        assert 0.9 < found < 1


def test_six_rows_may_still_mend_what_is_wrong_by_far() -> None:
    assert gain(WORLDS["far too sure"], 6, 10) > 3
