"""The scale of a posterior, and its recalibration, found on validation rows without training.

A posterior's standard deviations are multiplied by one factor; its mean stays. Of the factors tried, the largest
whose validation NLL is within a tolerance of the best wins: of two posteriors that predict equally well, the wider
one knows more about what it does not know. The NLL is that under the factor's own best recalibration, so that a
posterior is not widened only because the mean is too sure of itself.
"""

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from blora.adapter import check_output, load_adapter, save_adapter
from blora.base_model import BaseModel
from blora.config import MOST_LENGTH_POWER, AdapterConfig, SamplingConfig
from blora.decision.metrics import Metrics, metrics
from blora.decision.temperature import fit_recalibration
from blora.errors import NumericalError
from blora.inference.fork import first_layer
from blora.posterior.bank import SampleBank
from blora.posterior.inject import inject
from blora.posterior.posterior import Posterior
from blora.training.caveats import warn_of_few_rows
from blora.training.config import CACHE_GIB
from blora.training.data import ExampleSet, read_examples
from blora.training.evaluate import predict_all
from blora.training.overlap import SEEN, check_unseen, fingerprints
from blora.training.rows import LabelledRow, labels_of, lengths_of, pack_examples
from blora.training.sources import Rows
from blora.training.trunk import with_states

__all__ = ["Trial", "choose", "record", "scorer", "trial_of", "try_scales", "tune", "tune_adapter"]

logger = logging.getLogger(__name__)

# Relative excess of the NLL over the best at which wider scales are not tried any more.
GIVE_UP = 0.05


@dataclass(frozen=True, slots=True)
class Trial:
    """What the validation rows say of one scale.

    Attributes:
        scale: factor of the standard deviations.
        temperature: the best one at this scale.
        length_power: the best one, of the length that normalises choices.
        lapse: the best rate.
        metrics: of the predictive mean under all three.
        n_rows: how many they are.
    """

    scale: float
    temperature: float
    length_power: float
    lapse: float
    metrics: Metrics
    n_rows: int

    def recalibrated(self, config: AdapterConfig) -> AdapterConfig:
        """The adapter's settings with what this trial found."""
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


def scorer(
    base: BaseModel,
    posterior: Posterior,
    rows: Sequence[LabelledRow],
    n_samples: int,
    seed: int,
    *,
    cache_gib: float = CACHE_GIB,
) -> Callable[[float], Tensor]:
    """Return a function from a scale to log-probabilities (S, N, C) of the rows, with the same noise at every scale."""
    inject(base.model, posterior.modules_shape)
    known = with_states(base.model, rows, first_layer(posterior.modules_shape), cache_gib)

    def score(scale: float) -> Tensor:
        scaled = copy.deepcopy(posterior)
        scaled.widen(scale)
        bank = SampleBank.draw(scaled, "in tuning", n_samples, seed)
        return predict_all(base.model, known, bank.draws, about=f"scoring at scale {scale:g}")

    return score


def trial_of(scale: float, log_probs: Tensor, rows: Sequence[LabelledRow]) -> Trial:
    """What log-probabilities (S, N, C) of rows say of a scale."""
    labels, lengths = labels_of(rows), lengths_of(rows)
    power = rows[0].row.length_power
    found = fit_recalibration(log_probs, labels, lengths, powers=(-power, MOST_LENGTH_POWER - power))
    mean = found.of(log_probs, lengths).mean(0)
    return Trial(scale, found.temperature, power + found.power, found.lapse, metrics(mean, labels), len(labels))


def try_scales(score: Callable[[float], Tensor], rows: Sequence[LabelledRow], scales: Sequence[float]) -> list[Trial]:
    """One trial a scale, widening until the NLL has clearly left its valley.

    Args:
        score: from `scorer`.
        rows: that it scores.
        scales: candidates; they are tried from the narrowest to the widest.
    """
    trials: list[Trial] = []
    for scale in sorted(scales):
        try:
            trials.append(trial_of(scale, score(scale), rows))
            logger.info("%s", trials[-1])
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

    >>> def trial(scale, nll): return Trial(scale, 1.0, 1.0, 0.0, Metrics(0.5, nll, 0, 0, 0, 0), 400)
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
    trials = try_scales(scorer(base, posterior, rows, sampling.n_samples, sampling.seed), rows, scales)
    chosen = choose(trials, tolerance)
    posterior.widen(chosen.scale)
    return chosen, trials


def tune_adapter(
    path: Path,
    output: Path,
    base: BaseModel,
    data: Rows,
    *,
    split: str = "validation",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    scales: Sequence[float],
    tolerance: float,
) -> tuple[Trial, list[Trial]]:
    """Find an adapter's scale and recalibration and write the adapter that results.

    Args:
        path: the adapter.
        output: where to; its own place replaces it.
        base: its base model.
        data: labelled rows that it was not trained on: see `read_examples`, as for split and columns.
        split: of a hub data set.
        columns: that the data calls otherwise.
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
    examples = read_examples(data, choices=config.prompt.choices, split=split, columns=columns, limit=limit)
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
        chosen.recalibrated(config),
        posterior=adapter.posterior.config,
        training=config.training | {"tuning": found, SEEN: seen | {"tuning": fingerprints(examples)}},
    )
    save_adapter(output, adapter.posterior, config, base)
    logger.info("wrote %s: %s", output, chosen)
    warn_of_few_rows(chosen.n_rows)
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
            {
                "scale": trial.scale,
                "temperature": trial.temperature,
                "length_power": trial.length_power,
                "lapse": trial.lapse,
                **trial.metrics.to_dict(),
            }
            for trial in trials
        ],
    }
