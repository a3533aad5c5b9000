"""One training run, start to finish: data and base model in, adapter directory out."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from blora.adapter import check_output, save_adapter
from blora.base_model import BaseModel, load_base_model
from blora.config import AdapterConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.decision.abstention import Policy
from blora.inference.architecture import check_packing
from blora.lora import read_lora
from blora.posterior.inject import default_targets, parse_layers, select_modules
from blora.posterior.posterior import Posterior
from blora.training.checkpoints import claim, last_complete, release
from blora.training.config import TrainConfig
from blora.training.data import ExampleSet, read_examples, split_examples
from blora.training.overlap import SEEN, check_disjoint, fingerprints
from blora.training.processes import claim_device
from blora.training.provenance import command_line, machine, revision
from blora.training.rows import pack_examples
from blora.training.trainer import fit
from blora.training.tune import Trial, scorer, trial_of

__all__ = ["Recipe", "train_adapter"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything a training run depends on.

    Attributes:
        data: a file or hub data set.
        validation: another, or None: rows of `data` that are not trained on.
        split, validation_split: of hub data sets.
        n_train, n_validation: how many rows to use of each.
        split_seed: of the order in which `data` is divided.
        base_model, device, dtype: see `load_base_model`.
        target_modules: name patterns, None for PEFT's default.
        layers: see `parse_layers`.
        posterior: its form, but for the layers that get it.
        bayesian_layers: these, as in `parse_layers`; the other adapted layers get plain LoRA. None: all of them.
        init_from: a LoRA or adapter directory whose factors are the mean to start from, None to start from zero.
        prompt: how a question becomes text.
        default_template: take the template from the kind of the data instead.
        sampling: the adapter's sample bank.
        policy: the adapter's thresholds, None for none.
        training: how to fit.
        argv: the arguments of the command, for the record.
    """

    data: str
    validation: str | None
    split: str
    validation_split: str
    n_train: int | None
    n_validation: int | None
    split_seed: int
    base_model: str
    device: str
    dtype: str
    target_modules: tuple[str, ...] | None
    layers: str
    posterior: PosteriorConfig
    bayesian_layers: str | None
    init_from: Path | None
    prompt: PromptConfig
    default_template: bool
    sampling: SamplingConfig
    policy: dict[str, float] | None
    training: TrainConfig
    argv: tuple[str, ...]


def train_adapter(recipe: Recipe, output: Path) -> Trial:
    """Trains a posterior, recalibrates it, and writes its adapter directory.

    Args:
        recipe: the run.
        output: the directory to write.

    Returns:
        What the validation rows say of it.

    Raises:
        BloraError: for bad data, a bad base model or bad settings, before any training.
    """
    if recipe.policy is not None:
        Policy.from_mapping(recipe.policy)
    check_output(output)
    train, validation = _read(recipe)
    processes, device = claim_device(recipe.device)
    base = load_base_model(recipe.base_model, device=device, dtype=recipe.dtype)
    check_packing(base)
    prompt = replace(recipe.prompt, template=train.template) if recipe.default_template else recipe.prompt
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
    fitted = fit(base, posterior, rows, validation_rows, recipe.training, checkpoint)
    # A point has one draw.
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
    return result


def _read(recipe: Recipe) -> tuple[ExampleSet, ExampleSet]:
    choices = recipe.prompt.choices
    examples = read_examples(recipe.data, choices=choices, split=recipe.split)
    if recipe.validation is None:
        return split_examples(examples, recipe.n_train, recipe.n_validation, seed=recipe.split_seed)
    validation = read_examples(recipe.validation, choices=choices, split=recipe.validation_split)
    examples = replace(examples, examples=examples.examples[: recipe.n_train])
    validation = replace(validation, examples=validation.examples[: recipe.n_validation])
    check_disjoint(examples, validation)
    return examples, validation


def _settings(recipe: Recipe) -> dict[str, Any]:
    """Return what the recipe says, less the settings that change nothing about the result."""
    settings = asdict(recipe)
    settings.pop("argv")
    settings["init_from"] = str(recipe.init_from) if recipe.init_from is not None else None
    for name in ("work_dir", "resume", "trunk_cache_gib"):
        settings["training"].pop(name)
    return settings


def _record(recipe: Recipe, base: BaseModel, train: ExampleSet) -> dict[str, object]:
    return {
        "command": command_line("train", list(recipe.argv)),
        "revision": revision(),
        "machine": machine(base.device),
        "dtype": base.dtype_name,
        "settings": _settings(recipe)["training"],
        "init_from": str(recipe.init_from) if recipe.init_from is not None else None,
        "train": {"source": train.source, "digest": train.digest, "n_examples": len(train.examples)},
    }
