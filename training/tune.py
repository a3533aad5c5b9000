"""Search on validation rows for the scale and the recalibration of a posterior or an adapter, without training."""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from blora.adapter import check_output, read_config, save_adapter
from blora.adapter.opening import open_adapter
from blora.base_model import BaseModel
from blora.config import SamplingConfig
from blora.config.checks import require
from blora.decision.familiarity import Familiarity
from blora.decision.temperature import temper
from blora.inference.fork import first_layer
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import Features, HeadPosterior
from blora.posterior.inject import inject
from blora.posterior.posterior import Posterior
from blora.questions.fingerprints import joined
from blora.training.caveats import warn_of_few_rows
from blora.training.config import CACHE_GIB, SCALES
from blora.training.evaluate import predict_all
from blora.training.head.crossfit import Held
from blora.training.head.familiarity import with_guesses
from blora.training.head.features import read_features
from blora.training.lora.trunk import with_states
from blora.training.rows.examples import ExampleSet, examples_for
from blora.training.rows.overlap import SEEN, check_unseen, fingerprints, seen_among, trained_on
from blora.training.rows.packed import LabelledRow, pack_examples
from blora.training.rows.sources import Rows
from blora.training.trials import Trial, choose, try_scales

__all__ = ["record", "scorer", "tune", "tune_adapter"]

logger = logging.getLogger(__name__)


def scorer(
    base: BaseModel,
    posterior: Posterior | HeadPosterior,
    rows: Sequence[LabelledRow],
    sampling: SamplingConfig,
    *,
    features: Features | None = None,
    cache_gib: float = CACHE_GIB,
) -> Callable[[float], Tensor]:
    """Return a function from a scale to the rows' log-probabilities (S, N, C), with the same noise at every scale.

    Args:
        base: the posterior's base model.
        posterior: the posterior.
        rows: N rows.
        sampling: number and seed of the adapter's draws.
        features: what a head reads of the rows; None to read them now.
        cache_gib: memory for the states of the layers below a LoRA.
    """
    if isinstance(posterior, HeadPosterior):
        held = Held(posterior.head, features if features is not None else _read(base, posterior, rows), rows)
        return lambda scale: held.log_probs(scale, posterior.lora, sampling)
    inject(base.model, posterior.modules_shape)
    known = with_states(base.model, rows, first_layer(posterior.modules_shape), cache_gib)

    def score(scale: float) -> Tensor:
        scaled = copy.deepcopy(posterior)
        scaled.widen(scale)
        bank = SampleBank.draw(scaled, "in tuning", sampling.n_samples, sampling.seed)
        return predict_all(base.model, known, bank.draws, about=f"scoring at scale {scale:g}")

    return score


def tune(
    base: BaseModel,
    posterior: Posterior | HeadPosterior,
    rows: Sequence[LabelledRow],
    sampling: SamplingConfig,
    *,
    scales: Sequence[float],
    tolerance: float,
    features: Features | None = None,
) -> tuple[Trial, list[Trial]]:
    """Widen a posterior in place to the scale chosen on validation rows.

    Args:
        base: the posterior's base model.
        posterior: the posterior to widen.
        rows: the validation rows.
        sampling: number and seed of the adapter's draws.
        scales: the scales to try.
        tolerance: see `choose`, in nats.
        features: as for `scorer`.

    Returns:
        The chosen trial, and all trials.

    Raises:
        ConfigError: if there are no scales, or the tolerance is negative or not finite.
    """
    require(len(scales) > 0, "no scales", "at least one")
    require(0 <= tolerance < math.inf, f"tolerance = {tolerance}", "nats of at least 0")
    if isinstance(posterior, Posterior) and posterior.config.method == "lora":
        scales = [1.0]  # a point has no width: only the recalibration is to be found
    trials = try_scales(scorer(base, posterior, rows, sampling, features=features), rows, scales, tolerance)
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
        BloraError: if the adapter was trained on one of the questions, or is a plain LoRA and the scales are not the
            default.
    """
    check_output(output)
    config = read_config(path)
    point = config.head is None and config.posterior.method == "lora"
    require(not point or tuple(scales) == SCALES, f"scales for the plain LoRA {path}, which has no width", "none")
    examples = examples_for(config, data, split=split, columns=columns, limit=limit)
    seen = config.training.get(SEEN, {})
    check_unseen({"train": config.training.get("train"), SEEN: trained_on(seen)}, examples)
    base, adapter = open_adapter(path, base_model=base_model, device=device, dtype=dtype)
    rows = pack_examples(examples, base, config.prompt)
    posterior = adapter.posterior
    features = _read(base, posterior, rows) if isinstance(posterior, HeadPosterior) else None
    chosen, trials = tune(base, posterior, rows, config.sampling, scales=scales, tolerance=tolerance, features=features)
    found = record(examples, chosen, trials, tolerance)
    if "tuning" in config.training:
        found["before"] = config.training["tuning"]
    tuned_on = joined(seen.get("tuning", ""), fingerprints(examples))
    config = chosen.recalibrated(config)
    familiarity = adapter.familiarity
    if familiarity is not None:
        assert isinstance(posterior, HeadPosterior)  # which alone has a familiarity
        assert features is not None
        probs = temper(
            Held(posterior.head, features, rows).log_probs(1.0, posterior.lora, config.sampling),
            *(config.sampling.temperature, config.sampling.lapse),
        )
        familiarity = _guessing_beyond(familiarity, features, probs, examples, rows, seen)
    config = replace(
        config,
        familiarity=familiarity.config if familiarity is not None else None,
        posterior=config.posterior if isinstance(posterior, HeadPosterior) else posterior.config,
        training=config.training | {"tuning": found, SEEN: seen | {"tuning": tuned_on}},
    )
    save_adapter(output, posterior, config, base, familiarity)
    logger.info("wrote %s: %s", output, chosen)
    warn_of_few_rows(chosen.n_rows, chosen.n_recalibrating)
    return chosen, trials


def _guessing_beyond(
    familiarity: Familiarity,
    features: Features,
    probs: Tensor,
    examples: ExampleSet,
    rows: Sequence[LabelledRow],
    seen: Mapping[str, str],
) -> Familiarity:
    """Return a familiarity with guesses that begin beyond these rows too.

    Args:
        familiarity: the adapter's familiarity.
        features: what its head reads of the rows.
        probs: (S, N, C) the rows' probabilities as they are recalibrated.
        examples: the N rows.
        rows: the same, packed.
        seen: the adapter's fingerprints by use.
    """
    assert features.prompt is not None  # a head reads it
    distances = familiarity.distance(features.prompt, features.choices())
    further = _tell_of_others(examples, seen, distances > familiarity.reference.max())
    return with_guesses(familiarity, probs, rows, distances[further])


def _tell_of_others(examples: ExampleSet, seen: Mapping[str, str], farther: Tensor) -> Tensor:
    """Return which rows (N,) tell, beside the reference of a familiarity, how far other familiar questions are.

    A row of the reference is counted already: counted twice, it would bring the guesses too near. A row that is farther
    than the reference is not in it, for of very many rows the reference keeps some. A row that the distance was fitted
    to is nearer than others of its kind, and never tells.

    Args:
        examples: the N rows.
        seen: the adapter's fingerprints by use. A "reference", which `blora familiarize` records, has taken the place
            of the validation rows.
        farther: (N,) whether each row is farther than the whole reference.
    """
    reference = "reference" if "reference" in seen else "validation"
    uses = {use: seen[use] for use in (reference, "familiarity") if use in seen}
    known = dict(seen_among(examples, {SEEN: uses}))
    found = [known.get(example.where) for example in examples.examples]
    new, fitted = (torch.tensor([use == one for use in found]) for one in (None, "familiarity"))
    return (new | farther) & ~fitted


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


def _read(base: BaseModel, posterior: HeadPosterior, rows: Sequence[LabelledRow]) -> Features:
    """Return what a head reads of rows."""
    inject(base.model, posterior.lora.modules_shape)
    lora = posterior.lora.mean().to(base.device)
    return read_features(base.model, rows, posterior.head.config, lora, "reading states")
