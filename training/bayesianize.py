"""Conversion of a trained LoRA to a Bayesian adapter without training: the mean is the LoRA, the width is tuned.

The LoRA's two factors are first balanced (the same update, with its singular values shared evenly between them), so
that noise of one scale suits both. The prior is scaled to the factors, and `blora.training.tune` finds on validation
rows how far the posterior can be widened before its predictions get worse.
"""

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from blora.adapter import check_output, is_adapter, read_config, save_adapter
from blora.adapter.lora import balanced, lora_shape, read_lora
from blora.adapter.opening import base_model_of, check_lora_base, open_base
from blora.base_model import BaseModel
from blora.config import AdapterConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.decision.abstention import Policy
from blora.errors import AdapterError, ConfigError
from blora.posterior.draws import Factors
from blora.posterior.inject import check_modules, inject, target_names
from blora.posterior.posterior import Posterior
from blora.training.caveats import warn_of_few_rows
from blora.training.config import N_SAMPLES_TUNED, NEW_PROMPT, SCALES, TOLERANCE_NATS
from blora.training.evaluate import predict_all
from blora.training.provenance import machine, revision
from blora.training.recipe import prompt_of, sampling_of
from blora.training.rows.examples import ExampleSet, examples_of
from blora.training.rows.labels import label_set
from blora.training.rows.overlap import SEEN, check_unseen, fingerprints, seen_by
from blora.training.rows.packed import pack_examples
from blora.training.rows.questions import Question, as_plain
from blora.training.rows.sources import Rows, read_table
from blora.training.run import Trained
from blora.training.trials import Trial, trial_of
from blora.training.tune import record, tune

__all__ = ["bayesianize_lora", "posterior_around"]

logger = logging.getLogger(__name__)

# Ratio of the prior's standard deviation to the root mean square of the factors. At scale 1 the posterior's standard
# deviation is a quarter of the prior's, so equal to the root mean square of the factors.
PRIOR_WIDTH = 4.0
START = PosteriorConfig(lambda_max=1.0, lambda_init=1 / PRIOR_WIDTH, scale_init=0.1)


def bayesianize_lora(
    path: Path,
    output: Path,
    data: Rows,
    *,
    command: str,
    split: str = "validation",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    scales: Sequence[float] = SCALES,
    tolerance: float = TOLERANCE_NATS,
    **settings: Any,
) -> tuple[Trained, list[Trial]]:
    """Read rows and a base model, and write a Bayesian adapter made from a plain PEFT LoRA.

    Args:
        path: the LoRA's directory.
        output: the adapter directory to write.
        data: labelled rows that the LoRA was not trained on, in any form that `read_examples` takes.
        command: the command that started the conversion, for the training record.
        split: the split of a hub data set to load.
        columns: our column names, mapped to the data's own names.
        limit: number of rows to use from the top, None for all.
        base_model: the base model that the LoRA was trained on, as for `open_base`; by default that of a LoRA
            that `blora train` made, and the embedded one for any other.
        device: device to compute on, as for `load_base_model`.
        dtype: precision of the base model, as for `load_base_model`.
        scales: factors to try on the posterior's standard deviations.
        tolerance: see `blora.training.trials.choose`, in nats.
        settings: settings of the prompt and the draws, by flag name of `blora bayesianize`, with underscores; by
            default those of a LoRA that `blora train` made, or else those of `blora train`.

    Returns:
        The base model with the chosen trial, and all trials; the first is the LoRA itself, at scale 0.

    Raises:
        BloraError: if the data, the base model, the LoRA or a setting is unusable.
    """
    given = {name: value for name, value in settings.items() if value is not None}
    own = _own_config(path)
    question = Question.of(own) if own is not None else None
    if question is not None and "choices" in given:
        raise ConfigError(
            f"got choices for a LoRA that answers the question {question.config.name!r}, which brings its own; leave "
            "--choices out"
        )
    default_template = own is None and "template" not in given
    prompt = prompt_of(given, own.prompt if own is not None else NEW_PROMPT)
    sampling = sampling_of(given, own.sampling if own is not None else SamplingConfig())
    sampling = replace(sampling, n_samples=given.pop("n_samples", N_SAMPLES_TUNED))  # a plain LoRA has one draw
    if given:
        raise ConfigError(f"got unknown settings {', '.join(given)}, expected those of `blora bayesianize --help`")
    if own is not None and own.policy is not None:
        Policy.from_mapping(own.policy).check_draws(sampling.n_samples)
    table = as_plain(read_table(data, split=split, columns=columns), question, training=True)
    if own is None and prompt.choices is None:
        prompt = replace(prompt, choices=label_set(table))
    examples = examples_of(table, prompt.choices, limit)
    if default_template:
        prompt = replace(prompt, template=examples.template)
    base = open_base(base_model or base_model_of(path), device=device, dtype=dtype)
    if base.is_encoder:
        raise ConfigError(
            f"got {base.ref.id}, an encoder, expected a language model, by whose scores a LoRA without a head answers: "
            "train a head with `blora train`"
        )
    chosen, trials = _bayesianize(
        path, output, base, examples, own, prompt, sampling, scales=scales, tolerance=tolerance, command=command
    )
    return Trained(base, chosen), trials


def _own_config(path: Path) -> AdapterConfig | None:
    """Return the config of a LoRA that `blora train` made, None for any other.

    Raises:
        AdapterError: if the directory holds an adapter that has a posterior already.
    """
    if not is_adapter(path):
        return None
    config = read_config(path)
    if config.head is not None or config.posterior.method != "lora":
        raise AdapterError(
            f"got {path}, an adapter that has a posterior already, expected a plain LoRA: widen its posterior with "
            "blora tune"
        )
    return config


def _bayesianize(
    path: Path,
    output: Path,
    base: BaseModel,
    examples: ExampleSet,
    own: AdapterConfig | None,
    prompt: PromptConfig,
    sampling: SamplingConfig,
    *,
    scales: Sequence[float],
    tolerance: float,
    command: str,
) -> tuple[Trial, list[Trial]]:
    """Write a Bayesian adapter made from a plain PEFT LoRA.

    Args:
        path: the LoRA's directory.
        output: the adapter directory to write.
        base: the base model that the LoRA was trained on.
        examples: labelled rows that the LoRA was not trained on; they choose the width and the recalibration.
        own: config of a LoRA that `blora train` made, whose question and policy are kept.
        prompt: how a question becomes text.
        sampling: number and seed of the adapter's draws.
        scales: factors to try on the posterior's standard deviations.
        tolerance: see `blora.training.trials.choose`, in nats.
        command: the command that started the conversion, for the training record.

    Returns:
        The chosen trial, and all trials; the first is the LoRA itself, at scale 0.

    Raises:
        AdapterError: if the directory holds no plain LoRA, or the LoRA is not one of the base model.
        ConfigError: if the LoRA's update is zero everywhere.
        DataError: if the LoRA is an adapter that was made with some of the examples.
    """
    check_output(output)
    seen = seen_by(path)
    check_unseen({SEEN: seen}, examples)
    check_lora_base(path, base)
    posterior = posterior_around(path, START, sampling.seed)
    check_modules(base.model, posterior.modules_shape)
    rows = pack_examples(examples, base, prompt)
    inject(base.model, posterior.modules_shape)
    lora = trial_of(0.0, predict_all(base.model, rows, posterior.mean(), about="scoring the LoRA"), rows)
    chosen, trials = tune(base, posterior, rows, sampling, scales=scales, tolerance=tolerance)
    config = AdapterConfig(
        base_model=base.ref,
        target_modules=target_names(posterior.modules_shape),
        modules=posterior.modules_shape,
        posterior=posterior.config,
        prompt=prompt,
        sampling=sampling,
        question=own.question if own is not None else None,
        policy=own.policy if own is not None else None,
        training={
            "command": command,
            "revision": revision(),
            "machine": machine(base.device),
            "dtype": base.dtype_name,
            "init_from": str(path),
            "tuning": record(examples, chosen, [lora, *trials], tolerance),
            SEEN: seen | {"tuning": fingerprints(examples)},
        },
    )
    save_adapter(output, posterior, chosen.recalibrated(config), base)
    logger.info("wrote %s: %s", output, chosen)
    if chosen.metrics.nll > lora.metrics.nll + tolerance:
        logger.warning(
            "the adapter's validation NLL, %.4f, is above that of the LoRA, %.4f, by more than the tolerance of %g: "
            "try --scales below %g",
            *(chosen.metrics.nll, lora.metrics.nll, tolerance, min(scales)),
        )
    warn_of_few_rows(chosen.n_rows, chosen.n_recalibrating)
    return chosen, [lora, *trials]


def posterior_around(path: Path, config: PosteriorConfig, seed: int) -> Posterior:
    """Return a posterior whose mean is a plain PEFT LoRA and whose relative width is set by the config.

    Args:
        path: the LoRA's directory.
        config: settings of the posterior; rank, alpha and prior_std are replaced to fit the LoRA.
        seed: seed of the inducing inputs that the LoRA does not determine.

    Raises:
        AdapterError: if the directory holds no plain LoRA.
        ConfigError: if the LoRA's update is zero everywhere.
    """
    shape = lora_shape(path)
    factors = {name: balanced(pair) for name, pair in read_lora(path, shape.modules, shape.rank, shape.alpha).items()}
    size = _root_mean_square(factors)
    if size == 0:
        raise ConfigError(f"got LoRA {path} whose update is zero, expected a trained one; train it first")
    config = replace(
        config,
        rank=shape.rank,
        alpha=shape.alpha,
        prior_std=PRIOR_WIDTH * size,
        inducing_rows=max(config.inducing_rows, shape.rank),
        inducing_cols=max(config.inducing_cols, shape.rank),
    )
    posterior = Posterior(shape.modules, config, seed)
    posterior.set_mean(factors)
    return posterior


def _root_mean_square(factors: Mapping[str, Factors]) -> float:
    """Return the root mean square of all entries of all factors."""
    tensors = [tensor for pair in factors.values() for tensor in (pair.A, pair.B)]
    total = sum(tensor.square().sum().item() for tensor in tensors)
    return math.sqrt(total / sum(tensor.numel() for tensor in tensors))
