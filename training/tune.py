"""The scale of a posterior, and its temperature, found on validation rows without training.

A posterior's standard deviations are multiplied by one factor; its mean stays. Of the factors tried, the largest
whose validation NLL is within a tolerance of the best wins: of two posteriors that predict equally well, the wider
one knows more about what it does not know. The NLL is that at the factor's own best temperature, so that a posterior
is not widened only because the mean is too sure of itself.
"""

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from blora.adapter import check_output, load_adapter, save_adapter
from blora.base_model import BaseModel
from blora.config import SamplingConfig
from blora.decision.calibration import Metrics, fit_temperature, metrics, temper
from blora.errors import NumericalError
from blora.inference.fork import first_layer
from blora.posterior.bank import SampleBank
from blora.posterior.inject import inject
from blora.posterior.posterior import Posterior
from training.data import ExampleSet, read_examples
from training.evaluate import predict_all
from training.rows import LabelledRow, pack_examples
from training.seen import SEEN, check_unseen, fingerprints
from training.trunk import with_states

__all__ = ["Trial", "choose", "record", "scorer", "trial_of", "try_scales", "tune", "tune_adapter"]

# Relative excess of the NLL over the best at which wider scales are not tried any more.
GIVE_UP = 0.05


@dataclass(frozen=True, slots=True)
class Trial:
    """What the validation rows say of one scale.

    Attributes:
        scale: factor of the standard deviations.
        temperature: the best one at this scale.
        metrics: of the predictive mean at that temperature.
    """

    scale: float
    temperature: float
    metrics: Metrics

    def __str__(self) -> str:
        m = self.metrics
        return (
            f"scale {self.scale:5.2f}  temperature {self.temperature:5.2f}  "
            f"NLL {m.nll:.4f}  ECE {m.ece:.4f}  accuracy {m.accuracy:.3f}  AURC {m.aurc:.4f}"
        )


def scorer(
    base: BaseModel, posterior: Posterior, rows: Sequence[LabelledRow], n_samples: int, seed: int
) -> Callable[[float], Tensor]:
    """A function from a scale to log-probabilities (S, N, C) of the rows, with the same noise at every scale."""
    inject(base.model, posterior.modules_shape)
    known = with_states(base.model, rows, first_layer(posterior.modules_shape))

    def score(scale: float) -> Tensor:
        scaled = copy.deepcopy(posterior)
        scaled.widen(scale)
        bank = SampleBank.draw(scaled, "in tuning", n_samples, seed)
        return predict_all(base.model, known, bank.draws)

    return score


def trial_of(scale: float, log_probs: Tensor, labels: Tensor) -> Trial:
    """What log-probabilities (S, N, C) say of a scale, given labels (N,)."""
    temperature = fit_temperature(log_probs, labels)
    return Trial(scale, temperature, metrics(temper(log_probs, temperature).mean(0), labels))


def try_scales(score: Callable[[float], Tensor], labels: Tensor, scales: Sequence[float]) -> list[Trial]:
    """One trial a scale, widening until the NLL has clearly left its valley.

    Args:
        score: from `scorer`.
        labels: (N,).
        scales: candidates; they are tried from the narrowest to the widest.
    """
    trials: list[Trial] = []
    for scale in sorted(scales):
        try:
            trials.append(trial_of(scale, score(scale), labels))
        except NumericalError:
            if not trials:
                raise
            break  # so wide that the model overflows
        best = min(trial.metrics.nll for trial in trials)
        if trials[-1].metrics.nll > best * (1 + GIVE_UP):
            break
    return trials


def choose(trials: Sequence[Trial], tolerance: float) -> Trial:
    """The widest trial whose NLL is within a tolerance of the best, in nats.

    >>> def trial(scale, nll): return Trial(scale, 1.0, Metrics(0.5, nll, 0, 0, 0, 0))
    >>> choose([trial(0.5, 1.02), trial(1.0, 1.00), trial(2.0, 1.004), trial(4.0, 1.3)], 0.005).scale
    2.0
    """
    best = min(trial.metrics.nll for trial in trials)
    return max((t for t in trials if t.metrics.nll <= best + tolerance), key=lambda trial: trial.scale)


def tune(
    base: BaseModel,
    posterior: Posterior,
    rows: Sequence[LabelledRow],
    sampling: SamplingConfig,
    *,
    scales: Sequence[float],
    tolerance: float,
) -> tuple[Trial, list[Trial]]:
    """Widens a posterior, in place, to the scale that validation rows choose.

    Args:
        base: its base model.
        posterior: what is widened.
        rows: validation rows.
        sampling: the draws that will be served.
        scales: candidates.
        tolerance: see `choose`, in nats.

    Returns:
        The trial that was chosen, and all of them.
    """
    labels = torch.tensor([row.label for row in rows])
    trials = try_scales(scorer(base, posterior, rows, sampling.n_samples, sampling.seed), labels, scales)
    chosen = choose(trials, tolerance)
    posterior.widen(chosen.scale)
    return chosen, trials


def tune_adapter(
    path: Path,
    output: Path,
    base: BaseModel,
    *,
    data: str,
    split: str,
    limit: int | None,
    scales: Sequence[float],
    tolerance: float,
) -> tuple[Trial, list[Trial]]:
    """Tunes an adapter's scale and temperature and writes the adapter that results.

    Args:
        path: the adapter.
        output: where to; its own place replaces it.
        base: its base model.
        data: a file or hub data set that it was not trained on.
        split: of a hub data set.
        limit: rows from its start, None for all.
        scales: candidates.
        tolerance: see `choose`, in nats.

    Returns:
        The trial that was chosen, and all of them.

    Raises:
        BloraError: if a question is one that the adapter was trained on.
    """
    adapter = load_adapter(path, base)
    check_output(output)
    config = adapter.config
    examples = read_examples(data, choices=config.prompt.choices, split=split)
    examples = replace(examples, examples=examples.examples[:limit])
    seen = config.training.get(SEEN, {})
    check_unseen({"train": config.training.get("train"), SEEN: {"train": seen.get("train", "")}}, examples)
    chosen, trials = tune(
        base,
        adapter.posterior,
        pack_examples(examples, base, config.prompt),
        config.sampling,
        scales=scales,
        tolerance=tolerance,
    )
    found = record(examples, chosen, trials, tolerance)
    if "tuning" in config.training:
        found["before"] = config.training["tuning"]
    config = replace(
        config,
        posterior=adapter.posterior.config,
        sampling=replace(config.sampling, temperature=chosen.temperature),
        training=config.training | {"tuning": found, SEEN: seen | {"tuning": fingerprints(examples)}},
    )
    save_adapter(output, adapter.posterior, config, base)
    return chosen, trials


def record(data: ExampleSet, chosen: Trial, trials: Sequence[Trial], tolerance: float) -> dict[str, object]:
    """What an adapter remembers of its tuning."""
    return {
        "source": data.source,
        "digest": data.digest,
        "n_examples": len(data.examples),
        "tolerance": tolerance,
        "scale": chosen.scale,
        "trials": [
            {"scale": trial.scale, "temperature": trial.temperature, **trial.metrics.to_dict()} for trial in trials
        ],
    }
