"""Trials of posteriors on validation rows: recalibration and metrics of each, and the choice among them.

A scale multiplies a posterior's standard deviations and leaves its mean alone. The choice is the largest scale whose
validation NLL is within a tolerance of the best: of two posteriors that predict equally well, the wider one expresses
more epistemic uncertainty. Every scale is recalibrated before its NLL is computed, so that an overconfident mean alone
does not widen the posterior.

Of two adapters the dearer one must be better by more than one standard error of the difference, over the texts of the
rows: with few texts the lower NLL of two may be chance.
"""

import logging
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from blora.config import MOST_LENGTH_POWER, AdapterConfig
from blora.decision.metrics import Metrics, losses, metrics
from blora.decision.temperature import fit_recalibration
from blora.errors import NumericalError
from blora.training.rows.packed import LabelledRow, labels_of, lengths_of

__all__ = ["Trial", "choose", "clearly_better", "trial_of", "try_scales"]

logger = logging.getLogger(__name__)

# Stop trying wider scales once the NLL exceeds the best by this fraction, and by more than the tolerance.
GIVE_UP = 0.05


@dataclass(frozen=True, slots=True)
class Trial:
    """Recalibration and metrics of one scale on validation rows.

    Attributes:
        scale: factor on the posterior's standard deviations.
        temperature: the best temperature at this scale.
        length_power: the best power of the length that normalises log-probabilities.
        lapse: the best lapse rate.
        metrics: metrics of the recalibrated predictive mean.
        losses: (n_rows,) negative log-probability of each validation row's label, in nats.
        n_recalibrating: number of rows that recalibrate, with a head's training rows out of fold.
    """

    scale: float
    temperature: float
    length_power: float
    lapse: float
    metrics: Metrics
    losses: Tensor = field(compare=False)
    n_recalibrating: int

    @property
    def n_rows(self) -> int:
        """The number of validation rows."""
        return len(self.losses)

    def recalibrated(self, config: AdapterConfig) -> AdapterConfig:
        """Return the adapter's settings with this trial's recalibration."""
        return replace(
            config,
            prompt=replace(config.prompt, length_power=self.length_power),
            sampling=replace(config.sampling, temperature=self.temperature, lapse=self.lapse),
        )

    def __str__(self) -> str:
        m = self.metrics
        return (
            f"scale {self.scale:5.2f}  temperature {self.temperature:5.2f}  length power {self.length_power:4.2f}  "
            f"lapse {self.lapse:5.3f}  NLL {m.nll:.4f}  ECE {m.ece:.4f}  accuracy {m.accuracy:.3f}  AURC {m.aurc:.4f}"
        )


def trial_of(scale: float, log_probs: Tensor, rows: Sequence[LabelledRow], n_validation: int | None = None) -> Trial:
    """Return a scale's trial, computed from log-probabilities at this scale.

    Args:
        scale: the scale.
        log_probs: (S, N, C) log-probabilities of the rows.
        rows: the rows, all of which recalibrate.
        n_validation: number of rows, from the first, for the metrics; None for all.
    """
    labels, lengths = labels_of(rows), lengths_of(rows)
    power = rows[0].row.length_power
    found = fit_recalibration(log_probs, labels, lengths, powers=(-power, MOST_LENGTH_POWER - power))
    mean = found.of(log_probs, lengths).mean(0)[:n_validation]
    judged, lost = metrics(mean, labels[:n_validation]), losses(mean, labels[:n_validation])
    return Trial(scale, found.temperature, power + found.power, found.lapse, judged, lost, len(labels))


def try_scales(
    score: Callable[[float], Tensor], rows: Sequence[LabelledRow], scales: Sequence[float], tolerance: float
) -> list[Trial]:
    """Return one trial per scale, from the narrowest to the widest, until the NLL is clearly worse than the best.

    Args:
        score: the function that `scorer` returned for these rows.
        rows: the validation rows.
        scales: the candidates, in any order.
        tolerance: nats above the best NLL that are not clearly worse, as in `choose`.
    """
    trials: list[Trial] = []
    for scale in sorted(scales):
        try:
            trials.append(trial_of(scale, score(scale), rows))
            logger.info("%s", trials[-1])
        except NumericalError:
            if not trials:
                raise
            break  # at this scale the model overflows
        best = min(trial.metrics.nll for trial in trials)
        if trials[-1].metrics.nll > best + max(tolerance, GIVE_UP * best):
            break
    return trials


def choose(trials: Sequence[Trial], tolerance: float) -> Trial:
    """Return the trial with the largest scale whose NLL is within a tolerance, in nats, of the best.

    >>> def trial(scale, nll): return Trial(scale, 1.0, 1.0, 0.0, Metrics(0.5, nll, 0, 0, 0, 0), Tensor(400), 400)
    >>> choose([trial(0.5, 1.02), trial(1.0, 1.00), trial(2.0, 1.004), trial(4.0, 1.3)], 0.005).scale
    2.0
    """
    best = min(trial.metrics.nll for trial in trials)
    return max((t for t in trials if t.metrics.nll <= best + tolerance), key=lambda trial: trial.scale)


def clearly_better(trial: Trial, other: Trial, texts: Sequence[str]) -> bool:
    """Return whether a trial has a lower NLL than another by more than one standard error of the difference.

    Args:
        trial: the trial.
        other: another one, on the same rows.
        texts: text that each row is about; rows about one text are no independent evidence.
    """
    gains: dict[str, float] = defaultdict(float)
    for text, gained in zip(texts, (other.losses - trial.losses).tolist(), strict=True):
        gains[text] += gained
    gain = torch.tensor([*gains.values()])
    return len(gain) > 1 and bool(gain.mean() > gain.std() / len(gain) ** 0.5)
