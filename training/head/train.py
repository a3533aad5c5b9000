"""Training of a decision head, on the frozen base model or above a LoRA: features, weights, width and recalibration."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from transformers import TrainerCallback

from blora.base_model import BaseModel
from blora.config import CompanionConfig, HeadConfig, PosteriorConfig, SamplingConfig
from blora.decision.familiarity import Familiarity
from blora.decision.metrics import Metrics
from blora.decision.temperature import temper
from blora.errors import ConfigError
from blora.inference.reading import readable_depths, trunk_of
from blora.posterior.decision_head import DecisionHead, Features, HeadPosterior
from blora.posterior.draws import Draws
from blora.posterior.inject import inject, n_layers_of
from blora.posterior.posterior import Posterior
from blora.training.config import HEAD_SCALES, TOLERANCE_NATS, TrainConfig
from blora.training.head.crossfit import Held, Refit, helping_folds, recalibrated
from blora.training.head.familiarity import familiarity_of, with_guesses
from blora.training.head.features import read_features
from blora.training.head.fit import PARTS, FittedHead, Precisions, Regression, fit_head
from blora.training.head.objective import HeadObjective
from blora.training.head.pool import pool
from blora.training.lora.trainer import minimize
from blora.training.lora.trunk import with_states
from blora.training.rows.packed import LabelledRow
from blora.training.trials import Trial, choose, try_scales

__all__ = ["Part", "TrainedHead", "default_head", "fit_parts", "head_on", "parse_depths", "train_below", "train_head"]

logger = logging.getLogger(__name__)

# A linear head has a weight for each direction and choice, a pointer head one for each direction.
N_DIRECTIONS, N_DIRECTIONS_OF_POINTER = 512, 1024
N_GRAMS = 65_536
# Seed of the folds in which training rows help few validation rows.
FOLD_SEED = 0
# Prior precision of the weights of the projected states while a LoRA below them is trained.
PRECISION = 5.0
# What a part of the inputs is called, for fixed choices and for choices that come with the question.
NAMES = {
    "counts": ("regression on n-grams", "base model's log-probabilities"),
    "states": ("regression on frozen states", "regression on frozen states"),
    "companion": ("regression on the companion's states", ""),
    "joint": ("regression on all of them together", ""),
    "both": ("head, posterior mean", "head, posterior mean"),
}


@dataclass(frozen=True, slots=True)
class Part:
    """Metrics of a part of an adapter on the validation rows, recalibrated on them."""

    name: str
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A head's posterior at the chosen width.

    Attributes:
        posterior: the posterior; all else is of the training rows' fit, also where this is the one to all rows.
        config: the head's settings.
        trial: recalibration and metrics on the validation rows, as `parts` have them.
        served: the same with the recalibration to serve with, for which training rows help few validation rows out.
        parts: what simpler methods reach, and the head itself last.
        fitted: the head of each part by its name, `both` for the whole, without draws.
        again: fits the whole head to other rows, at the same precisions.
        familiarity: distance from the training rows.
    """

    posterior: HeadPosterior
    config: HeadConfig
    trial: Trial
    served: Trial
    parts: tuple[Part, ...]
    fitted: dict[str, FittedHead]
    again: Refit
    familiarity: Familiarity


def parse_depths(spec: str, n_layers: int) -> tuple[int, ...]:
    """Return the depths named by `last`, or by indices separated by commas; see `HeadConfig.depths`.

    >>> parse_depths("last", 30)
    (30,)
    >>> parse_depths("10,20,30", 30)
    (10, 20, 30)

    Raises:
        ConfigError: if the text has another form or names a depth that does not exist.
    """
    if spec == "last":
        return (n_layers,)
    if not re.fullmatch(r"\d+(,\d+)*", spec):
        raise ConfigError(f"got depths {spec!r}, expected last, or indices separated by commas, as in 10,20,30")
    depths = tuple(sorted({int(index) for index in spec.split(",")}))
    if depths[-1] > n_layers:
        raise ConfigError(f"got depths {spec!r} of a model with {n_layers} layers, expected at most {n_layers}")
    return depths


def default_head(
    n_layers: int, hidden_size: int, *, linear: bool, depths: Sequence[int] | None = None, encoder: bool = False
) -> HeadConfig:
    """Return the settings of a head; by default it reads five depths, from a third of the layers to the last one.

    Of an encoder it reads two thirds of the layers and all of them: the last layer of a sentence encoder was trained to
    hold what a text says.

    >>> default_head(30, 576, linear=True).depths
    (10, 15, 20, 25, 30)
    >>> default_head(6, 384, linear=True, encoder=True).depths
    (4, 6)
    """
    sixths = (4, 6) if encoder else range(2, 7)
    depths = tuple(depths or sorted({round(n_layers * k / 6) for k in sixths}))
    return HeadConfig(
        depths=depths,
        n_states=len(depths) * hidden_size,
        n_directions=N_DIRECTIONS if linear else N_DIRECTIONS_OF_POINTER,
        n_grams=N_GRAMS if linear else 0,
        mirrored=True,
    )


def head_on(base: BaseModel, *, linear: bool, depths: Sequence[int] | None = None) -> HeadConfig:
    """Return the settings of a head on a base model and its companion, which it reads at an encoder's default depths.

    Args:
        base: the base model.
        linear: whether the head is a linear one.
        depths: depths of the base model's states; None for those of `default_head`.
    """
    hidden_size = base.model.config.get_text_config().hidden_size
    config = default_head(n_layers_of(base.model), hidden_size, linear=linear, depths=depths, encoder=base.is_encoder)
    if base.companion is None:
        return config
    own = head_on(base.companion, linear=True)
    companion = CompanionConfig(model=base.companion.ref, depths=own.depths, n_states=own.n_states)
    return replace(config, n_states=config.n_states + own.n_states, companion=companion)


def train_head(
    base: BaseModel,
    train: Sequence[LabelledRow],
    validation: Sequence[LabelledRow],
    sampling: SamplingConfig,
    depths: Sequence[int] | None,
    *,
    on_all: bool,
) -> TrainedHead:
    """Return the head that fits the training rows best on the frozen base model.

    Args:
        base: the base model.
        train: rows packed for the head, all with one readout.
        validation: rows that choose precisions, width and recalibration.
        sampling: number and seed of the adapter's draws.
        depths: depths of the states that it reads; None for those of `default_head` at which the model has one state
            a token.
        on_all: whether the posterior is fitted again in the end, to the validation rows too.
    """
    linear = train[0].row.readout == "linear"
    config = head_on(base, linear=linear, depths=depths)
    if depths is None:
        readable = readable_depths(base.model, train[0].row, config.depths)
        if readable != config.depths:
            logger.warning("this model has one state a token only at the depths %s, which the head reads", [*readable])
            config = head_on(base, linear=linear, depths=readable)
    lora = Posterior({}, PosteriorConfig(method="lora"), seed=0)
    read = [read_features(base.model, rows, config, lora.mean(), "reading states") for rows in (train, validation)]
    found = fit_parts(config, read[0], train, read[1], validation, sampling, lora)
    if not on_all:
        return found
    logger.info("fitting the head again, to the validation rows too")
    head = found.again(read[0].beside(read[1]), [*train, *validation])
    return replace(found, posterior=HeadPosterior(head.widen(found.trial.scale), lora), config=head.config)


def train_below(
    base: BaseModel,
    frozen: TrainedHead,
    lora: Posterior,
    train: Sequence[LabelledRow],
    validation: Sequence[LabelledRow],
    sampling: SamplingConfig,
    training: TrainConfig,
    checkpoint: Path | None,
    callbacks: Sequence[TrainerCallback],
) -> TrainedHead:
    """Train a LoRA below a head, and return the head that fits best on the states under that LoRA.

    Args:
        base: the base model; LoRA layers are injected into it.
        frozen: the head on the frozen base model, whose projection and weights of the counts the training starts from.
        lora: the LoRA to train in place, a point.
        train: rows packed for the head.
        validation: rows that choose the epoch, precisions, width and recalibration.
        sampling: number and seed of the adapter's draws.
        training: the training settings.
        checkpoint: folder of the checkpoint to resume from, None to start anew.
        callbacks: additional callbacks for the Trainer.
    """
    inject(base.model, lora.modules_shape)
    layer = trunk_of(frozen.config, lora.mean())
    train, validation = (with_states(base.model, rows, layer, training.trunk_cache_gib) for rows in (train, validation))
    objective = HeadObjective(
        base.model, lora, frozen.fitted["both"].head.to(base.device), n_train=len(train), precision=PRECISION
    )
    minimize(objective, train, validation, training, base.device, checkpoint, callbacks)
    lora.to("cpu")
    below = lora.mean().to(base.device)
    read = [read_features(base.model, rows, frozen.config, below, "reading states") for rows in (train, validation)]
    config = head_on(base, linear=train[0].row.readout == "linear", depths=frozen.config.depths)
    return fit_parts(config, read[0], train, read[1], validation, sampling, lora, alone=False)


def fit_parts(
    config: HeadConfig,
    features: Features,
    train: Sequence[LabelledRow],
    validation_features: Features,
    validation: Sequence[LabelledRow],
    sampling: SamplingConfig,
    lora: Posterior,
    *,
    alone: bool = True,
) -> TrainedHead:
    """Return the head that fits the training rows best, from features that have been read.

    Args:
        config: the head's settings.
        features: features of the training rows.
        train: the training rows.
        validation_features: features of the validation rows.
        validation: rows that choose precisions, width and recalibration, the last with the help of `helping_folds`.
        sampling: number and seed of the adapter's draws.
        lora: the LoRA below the head, under which the features were read.
        alone: whether `parts` and `fitted` have the parts of the head's inputs by themselves too.
    """
    above = ", above a LoRA" if lora.modules_shape else ""
    # Not the seed of the draws, which must not change the head. A LoRA has been trained on the rows of every fold.
    seed = FOLD_SEED if not lora.modules_shape else None
    linear = train[0].row.readout == "linear"
    fitted, again, folds = (_fit_linear if linear else _fit_pointer)(
        config, features, train, validation_features, validation, lora.mean(), seed, alone=alone
    )
    found = [Part(NAMES[name][0 if linear else 1] + above, one.trial.metrics) for name, one in fitted.items()]
    for part, one in zip(found, fitted.values(), strict=True):
        logger.info("%s: validation %s", part.name, one.trial)
    best = fitted["both"]
    held = Held(best.head, validation_features, validation)
    trials = try_scales(lambda scale: held.log_probs(scale, lora, sampling), validation, HEAD_SCALES, TOLERANCE_NATS)
    trial = choose(trials, TOLERANCE_NATS)
    served = recalibrated(trial.scale, [held, *folds], lora, sampling) if folds else trial
    found.append(Part(f"head, {sampling.n_samples} draws{above}", trial.metrics))
    posterior = HeadPosterior(best.head.widen(trial.scale), lora)
    familiarity = familiarity_of(config.depths, features, train, validation_features, validation)
    probs = temper(held.log_probs(trial.scale, lora, sampling), served.temperature, served.lapse)
    modest = with_guesses(familiarity.familiarity, probs, validation)
    return TrainedHead(posterior, best.head.config, trial, served, tuple(found), fitted, again, modest)


def _fit_linear(
    config: HeadConfig,
    features: Features,
    train: Sequence[LabelledRow],
    validation_features: Features,
    validation: Sequence[LabelledRow],
    lora: Draws,
    seed: int | None,
    *,
    alone: bool,
) -> tuple[dict[str, FittedHead], Refit, list[Held]]:
    """Return the fits of a linear head, as `TrainedHead.fitted` has them, how it is fitted again, and helping folds."""
    pooled = pool(config, features, train, validation_features, validation, lora, seed)
    logger.info("powers of the parts: %s", pooled.powers)
    return {**(pooled.factors if alone else {}), "both": pooled.whole}, partial(pooled.again, config), pooled.folds


def _fit_pointer(
    config: HeadConfig,
    features: Features,
    train: Sequence[LabelledRow],
    validation_features: Features,
    validation: Sequence[LabelledRow],
    lora: Draws,
    seed: int | None,
    *,
    alone: bool,
) -> tuple[dict[str, FittedHead], Refit, list[Held]]:
    """Return the same of a pointer head."""
    regression = Regression.of(config, features, train)
    regression.check_told_apart()
    parts = PARTS if alone else PARTS[-1:]
    fitted = {part: fit_head(regression, validation_features, validation, lora, part) for part in parts}
    again = partial(_again, config, fitted["both"].precisions)
    return fitted, again, helping_folds(again, features, train, len(validation), seed)


def _again(config: HeadConfig, precisions: Precisions, features: Features, rows: Sequence[LabelledRow]) -> DecisionHead:
    """Return the pointer head that other rows give, at the same precisions."""
    return Regression.of(config, features, rows).solve(*precisions, None)
