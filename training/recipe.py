"""A complete training run, from data and a base model to an adapter directory."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from blora.adapter import check_output, save_adapter
from blora.base_model import EMBEDDED, BaseModel
from blora.config import AdapterConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.decision.abstention import Policy
from blora.lora import read_lora
from blora.opening import open_base
from blora.posterior.inject import default_targets, parse_layers, select_modules
from blora.posterior.posterior import Posterior
from blora.training.caveats import warn_of_few_rows
from blora.training.checkpoints import claim, last_complete, release
from blora.training.config import N_SAMPLES, NEW_PROMPT, TrainConfig
from blora.training.data import ExampleSet, examples_of, read_examples, split_examples
from blora.training.labels import label_set
from blora.training.overlap import SEEN, check_disjoint, fingerprints
from blora.training.processes import claim_device
from blora.training.provenance import machine, revision
from blora.training.rows import pack_examples
from blora.training.sources import Rows, read_table
from blora.training.trainer import check_tracker, fit
from blora.training.tune import Trial, scorer, trial_of

__all__ = ["Recipe", "Trained", "train_adapter"]

logger = logging.getLogger(__name__)

# Training settings that do not affect the result.
INCIDENTAL = ("work_dir", "resume", "trunk_cache_gib", "report_to")


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The complete settings of a training run.

    Attributes:
        data: rows to train on, in any form that `blora.training.sources.read_table` takes.
        validation: rows to validate on, in the same forms; None sets rows of `data` aside.
        split: split to train on, of a hub data set.
        validation_split: split to validate on, of a hub data set.
        columns: our column names, mapped to the names in `data` and `validation`.
        train_examples: number of rows to train on; None for the default of `split_examples`, or for all rows if
            `validation` is given.
        validation_examples: number of rows to validate on; None for all that are not trained on.
        split_seed: seed of the random order in which `data` is divided.
        base_model: hub id, folder or file, as for `load_base_model`.
        device: device to train on, as for `load_base_model`.
        dtype: precision of the base model, as for `load_base_model`.
        target_modules: names of the modules to adapt, None for PEFT's default.
        layers: decoder layers to adapt, as text that `parse_layers` reads.
        posterior: family, rank, prior and start of the posterior.
        bayesian_layers: layers that get a posterior, written like `layers`; the other adapted layers get plain LoRA.
            None gives all adapted layers a posterior.
        init_from: directory of a LoRA or adapter whose factors are the initial mean, None to start from zero.
        prompt: how a question becomes text. If it has no choices, rows without choices get the labels that occur.
        default_template: whether the template follows the kind of the data instead of `prompt.template`.
        sampling: number and seed of the adapter's draws.
        policy: the adapter's thresholds, None for none.
        training: how the posterior is fitted.
        command: the command that started the run, for the training record.
    """

    data: Rows
    validation: Rows | None = None
    split: str = "train"
    validation_split: str = "validation"
    columns: Mapping[str, str] | None = None
    train_examples: int | None = None
    validation_examples: int | None = None
    split_seed: int = 0
    base_model: str = EMBEDDED
    device: str = "auto"
    dtype: str = "auto"
    target_modules: tuple[str, ...] | None = None
    layers: str = "all"
    posterior: PosteriorConfig = field(default_factory=PosteriorConfig)
    bayesian_layers: str | None = None
    init_from: Path | None = None
    prompt: PromptConfig = NEW_PROMPT
    default_template: bool = True
    sampling: SamplingConfig = field(default_factory=lambda: SamplingConfig(n_samples=N_SAMPLES))
    policy: dict[str, float] | None = None
    training: TrainConfig
    command: str


@dataclass(frozen=True, slots=True)
class Trained:
    """The base model of a run, and the validation results of the adapter that was written."""

    base: BaseModel
    result: Trial


def train_adapter(recipe: Recipe, output: Path, *, callbacks: Sequence[TrainerCallback] = ()) -> Trained:
    """Train a posterior, recalibrate it, and write its adapter directory.

    Args:
        recipe: the settings of the run.
        output: the adapter directory to write.
        callbacks: additional callbacks for the Trainer.

    Raises:
        BloraError: if the data, the base model or a setting is unusable; raised before training starts.
    """
    if recipe.policy is not None:
        Policy.from_mapping(recipe.policy)
    check_output(output)
    check_tracker(recipe.training.report_to)
    train, validation, prompt = _read(recipe)
    processes, device = claim_device(recipe.device)
    base = open_base(recipe.base_model, device=device, dtype=recipe.dtype)
    targets = recipe.target_modules or default_targets(base.model.config.model_type)
    n_layers = base.model.config.get_text_config().num_hidden_layers
    layers = parse_layers(recipe.layers, n_layers)
    form = recipe.posterior
    if recipe.bayesian_layers is not None:
        form = replace(form, bayesian_layers=parse_layers(recipe.bayesian_layers, n_layers))
    modules = select_modules(base.model, targets, layers)
    posterior = Posterior(modules, form, recipe.training.seed)
    if recipe.init_from is not None:
        posterior.set_mean(read_lora(recipe.init_from, modules, form.rank, form.alpha))
    rows, validation_rows = pack_examples(train, base, prompt), pack_examples(validation, base, prompt)
    work_dir = recipe.training.work_dir
    run = _settings(recipe) | {"prompt": asdict(prompt), "train": train.digest, "validation": validation.digest}
    with processes.main_process_first():
        if processes.is_main_process:
            checkpoint = claim(work_dir, run, resume=recipe.training.resume)
        else:
            checkpoint = last_complete(work_dir)
    logger.info(
        "training on %d rows with %d validation rows; the first row has %d choices",
        len(rows),
        len(validation_rows),
        rows[0].row.n_choices,
    )
    fitted = fit(base, posterior, rows, validation_rows, recipe.training, checkpoint, callbacks)
    # Plain LoRA has one set of weights, so one draw.
    n_samples = 1 if form.method == "lora" else recipe.sampling.n_samples
    cache_gib = recipe.training.trunk_cache_gib
    score = scorer(base, posterior, validation_rows, n_samples, recipe.sampling.seed, cache_gib=cache_gib)
    result = trial_of(1.0, score(1.0), validation_rows)
    config = AdapterConfig(
        base_model=base.ref,
        target_modules=tuple(targets),
        modules=modules,
        posterior=form,
        prompt=prompt,
        sampling=replace(recipe.sampling, n_samples=n_samples),
        policy=recipe.policy,
        training=_record(recipe, base, train)
        | {
            "seconds": fitted.seconds,
            SEEN: {"train": fingerprints(train), "validation": fingerprints(validation)},
            "validation": {
                "source": validation.source,
                "digest": validation.digest,
                "n_examples": len(validation.examples),
                "n_samples": n_samples,
                **result.metrics.to_dict(),
            },
        },
    )
    processes.wait_for_everyone()
    if processes.is_main_process:
        save_adapter(output, posterior, result.recalibrated(config), base)
        release(work_dir)
        logger.info("wrote %s: validation NLL %.3f, accuracy %.3f", output, result.metrics.nll, result.metrics.accuracy)
        warn_of_few_rows(result.n_rows)
    processes.wait_for_everyone()  # no process reads the adapter before the main one has written it
    return Trained(base, result)


def _read(recipe: Recipe) -> tuple[ExampleSet, ExampleSet, PromptConfig]:
    """Return the training rows, the validation rows, and the prompt settings for both."""
    table = read_table(recipe.data, split=recipe.split, columns=recipe.columns)
    choices = recipe.prompt.choices or label_set(table)
    examples = examples_of(table, choices)
    template = examples.template if recipe.default_template else recipe.prompt.template
    prompt = replace(recipe.prompt, choices=choices, template=template)
    if recipe.validation is None:
        parts = split_examples(examples, recipe.train_examples, recipe.validation_examples, seed=recipe.split_seed)
        return *parts, prompt
    validation = read_examples(
        recipe.validation,
        choices=choices,
        split=recipe.validation_split,
        columns=recipe.columns,
        limit=recipe.validation_examples,
    )
    examples = replace(examples, examples=examples.examples[: recipe.train_examples])
    check_disjoint(examples, validation)
    return examples, validation, prompt


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return the recipe as JSON, without its rows, command and settings that do not affect the result."""
    names = [f.name for f in fields(recipe) if f.name not in ("data", "validation", "command")]
    settings = {name: getattr(recipe, name) for name in names}
    settings |= {name: asdict(settings[name]) for name in ("posterior", "prompt", "sampling", "training")}
    settings["columns"] = dict(recipe.columns) if recipe.columns is not None else None
    settings["init_from"] = str(recipe.init_from) if recipe.init_from is not None else None
    for name in INCIDENTAL:
        settings["training"].pop(name)
    return settings


def _record(recipe: Recipe, base: BaseModel, train: ExampleSet) -> dict[str, object]:
    return {
        "command": recipe.command,
        "revision": revision(),
        "machine": machine(base.device),
        "dtype": base.dtype_name,
        "settings": _settings(recipe)["training"],
        "init_from": str(recipe.init_from) if recipe.init_from is not None else None,
        "train": {"source": train.source, "digest": train.digest, "n_examples": len(train.examples)},
    }
