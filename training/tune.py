"""Search on validation rows for a posterior's scale and recalibration, without training.

The scale multiplies a posterior's standard deviations and leaves its mean alone. The search chooses the largest scale
whose validation NLL is within a tolerance of the best: of two posteriors that predict equally well, the wider one
expresses more epistemic uncertainty. Every scale is recalibrated before its NLL is computed, so that an overconfident
mean alone does not widen the posterior.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from blora.adapter import check_output, load_adapter, read_config, save_adapter
from blora.base_model import BaseModel
from blora.checks import require
from blora.config import MOST_LENGTH_POWER, AdapterConfig, SamplingConfig
from blora.decision.metrics import Metrics, metrics
from blora.decision.temperature import fit_recalibration
from blora.errors import NumericalError
from blora.inference.fork import first_layer
from blora.inference.reading import head_log_probs
from blora.opening import open_base, own_base_model
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import Features, HeadPosterior
from blora.posterior.inject import inject
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.caveats import warn_of_few_rows
from blora.training.config import CACHE_GIB
from blora.training.data import ExampleSet, examples_for
from blora.training.evaluate import predict_all
from blora.training.features import read_features
from blora.training.overlap import SEEN, check_unseen, fingerprints, joined
from blora.training.rows import LabelledRow, labels_of, lengths_of, pack_examples
from blora.training.sources import Rows
from blora.training.trunk import with_states

__all__ = ["Trial", "choose", "head_scorer", "record", "scorer", "trial_of", "try_scales", "tune", "tune_adapter"]

logger = logging.getLogger(__name__)

# Stop trying wider scales once the NLL exceeds the best by this fraction.
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
        n_rows: number of validation rows.
        n_recalibrating: number of rows that recalibrate, with a head's training rows out of fold.
    """

    scale: float
    temperature: float
    length_power: float
    lapse: float
    metrics: Metrics
    n_rows: int
    n_recalibrating: int

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


def scorer(
    base: BaseModel,
    posterior: Posterior | HeadPosterior,
    rows: Sequence[LabelledRow],
    n_samples: int,
    seed: int,
    *,
    cache_gib: float = CACHE_GIB,
) -> Callable[[float], Tensor]:
    """Return a function from a scale to the rows' log-probabilities (S, N, C), with the same noise at every scale."""
    if isinstance(posterior, HeadPosterior):
        inject(base.model, posterior.lora.modules_shape)
        lora = posterior.lora.mean().to(base.device)
        features = read_features(base.model, rows, posterior.head.config, lora, "reading states")
        return head_scorer(posterior, features, rows, n_samples, seed)
    inject(base.model, posterior.modules_shape)
    known = with_states(base.model, rows, first_layer(posterior.modules_shape), cache_gib)

    def score(scale: float) -> Tensor:
        scaled = copy.deepcopy(posterior)
        scaled.widen(scale)
        bank = SampleBank.draw(scaled, "in tuning", n_samples, seed)
        return predict_all(base.model, known, bank.draws, about=f"scoring at scale {scale:g}")

    return score


def head_scorer(
    posterior: HeadPosterior, features: Features, rows: Sequence[LabelledRow], n_samples: int, seed: int
) -> Callable[[float], Tensor]:
    """Return the same function as `scorer` from the features of the rows."""
    packed = [row.row for row in rows]

    def score(scale: float) -> Tensor:
        scaled = copy.copy(posterior)
        scaled.widen(scale)
        return head_log_probs(scaled.sample(n_samples, generator_of(seed)), packed, features)

    return score


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
    judged = metrics(mean, labels[:n_validation])
    return Trial(scale, found.temperature, power + found.power, found.lapse, judged, len(mean), len(labels))


def try_scales(
    score: Callable[[float], Tensor],
    rows: Sequence[LabelledRow],
    scales: Sequence[float],
    n_validation: int | None = None,
) -> list[Trial]:
    """Return one trial per scale, from the narrowest to the widest, until the NLL is clearly worse than the best.

    Args:
        score: the function that `scorer` returned for these rows.
        rows: the validation rows, and further rows that recalibrate.
        scales: the candidates, in any order.
        n_validation: number of validation rows, which come first; None for all.
    """
    trials: list[Trial] = []
    for scale in sorted(scales):
        try:
            trials.append(trial_of(scale, score(scale), rows, n_validation))
            logger.info("%s", trials[-1])
        except NumericalError:
            if not trials:
                raise
            break  # at this scale the model overflows
        best = min(trial.metrics.nll for trial in trials)
        if trials[-1].metrics.nll > best * (1 + GIVE_UP):
            break
    return trials


def choose(trials: Sequence[Trial], tolerance: float) -> Trial:
    """Return the trial with the largest scale whose NLL is within a tolerance, in nats, of the best.

    >>> def trial(scale, nll): return Trial(scale, 1.0, 1.0, 0.0, Metrics(0.5, nll, 0, 0, 0, 0), 400, 400)
    >>> choose([trial(0.5, 1.02), trial(1.0, 1.00), trial(2.0, 1.004), trial(4.0, 1.3)], 0.005).scale
    2.0
    """
    best = min(trial.metrics.nll for trial in trials)
    return max((t for t in trials if t.metrics.nll <= best + tolerance), key=lambda trial: trial.scale)


def tune(
    base: BaseModel,
    posterior: Posterior | HeadPosterior,
    rows: Sequence[LabelledRow],
    sampling: SamplingConfig,
    *,
    scales: Sequence[float],
    tolerance: float,
) -> tuple[Trial, list[Trial]]:
    """Widen a posterior in place to the scale chosen on validation rows.

    Args:
        base: the posterior's base model.
        posterior: the posterior to widen.
        rows: the validation rows.
        sampling: number and seed of the adapter's draws.
        scales: the scales to try.
        tolerance: see `choose`, in nats.

    Returns:
        The chosen trial, and all trials.

    Raises:
        ConfigError: if there are no scales, or the tolerance is negative or not finite.
    """
    require(len(scales) > 0, "no scales", "at least one")
    require(0 <= tolerance < math.inf, f"tolerance = {tolerance}", "nats of at least 0")
    trials = try_scales(scorer(base, posterior, rows, sampling.n_samples, sampling.seed), rows, scales)
    chosen = choose(trials, tolerance)
    posterior.widen(chosen.scale)
    return chosen, trials


def tune_adapter(
    path: Path,
    output: Path,
    data: Rows,
    *,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    split: str = "validation",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    scales: Sequence[float],
    tolerance: float,
) -> tuple[Trial, list[Trial]]:
    """Find an adapter's scale and recalibration, and write the tuned adapter.

    Args:
        path: the adapter's directory.
        output: the directory to write; if it is `path`, the adapter is replaced.
        data: labelled rows that the adapter was not trained on, in any form that `read_examples` takes; they are
            checked before the base model is loaded.
        base_model: as for `open_adapter`.
        device: as for `load_base_model`.
        dtype: as for `load_base_model`.
        split: the split of a hub data set to load.
        columns: our column names, mapped to the data's own names.
        limit: number of rows to use from the top, None for all.
        scales: the scales to try.
        tolerance: see `choose`, in nats.

    Returns:
        The chosen trial, and all trials.

    Raises:
        BloraError: if the adapter was trained on one of the questions.
    """
    check_output(output)
    config = read_config(path)
    examples = examples_for(config, data, split=split, columns=columns, limit=limit)
    seen = config.training.get(SEEN, {})
    trained = {use: seen[use] for use in ("train", "init") if use in seen}
    check_unseen({"train": config.training.get("train"), SEEN: trained}, examples)
    base = open_base(base_model or own_base_model(path), device=device, dtype=dtype)
    adapter = load_adapter(path, base)
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
    tuned_on = joined(seen.get("tuning", ""), fingerprints(examples))
    config = replace(
        chosen.recalibrated(config),
        posterior=config.posterior if isinstance(adapter.posterior, HeadPosterior) else adapter.posterior.config,
        training=config.training | {"tuning": found, SEEN: seen | {"tuning": tuned_on}},
    )
    save_adapter(output, adapter.posterior, config, base, adapter.familiarity)
    logger.info("wrote %s: %s", output, chosen)
    warn_of_few_rows(chosen.n_rows, chosen.n_recalibrating)
    return chosen, trials


def record(data: ExampleSet, chosen: Trial, trials: Sequence[Trial], tolerance: float) -> dict[str, object]:
    """Return the entry for a tuning in the adapter's training record."""
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
