"""A complete training run, from a recipe to an adapter directory."""

import logging
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from pathlib import Path

from accelerate import PartialState
from transformers import TrainerCallback

from blora.adapter import check_output, save_adapter
from blora.adapter.card import ON_ALL
from blora.adapter.lora import WEIGHTS_FILE
from blora.adapter.opening import open_base
from blora.base_model import BaseModel
from blora.config import AdapterConfig, HeadConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.decision.abstention import Policy
from blora.decision.familiarity import Familiarity
from blora.errors import ConfigError
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.inject import n_layers_of
from blora.posterior.posterior import Posterior
from blora.questions.fingerprints import joined
from blora.training.caveats import warn_of_few_rows, warn_of_unseen_choices
from blora.training.config import N_SAMPLES
from blora.training.head.train import Part, TrainedHead, parse_depths, train_below, train_head
from blora.training.lora.checkpoints import check_apart, claimed, last_complete
from blora.training.lora.trainer import check_tracker, fit
from blora.training.plan import n_samples_of, plan_of
from blora.training.processes import claim_device
from blora.training.provenance import machine, revision
from blora.training.recipe import Recipe
from blora.training.rows.examples import ExampleSet, examples_of, read_examples, split_examples
from blora.training.rows.labels import label_set
from blora.training.rows.overlap import SEEN, check_disjoint, check_unseen, fingerprints, seen_by, trained_on
from blora.training.rows.packed import LabelledRow, pack_examples
from blora.training.rows.questions import as_plain
from blora.training.rows.sources import read_table
from blora.training.start import check_below, lora_of
from blora.training.trials import Trial, clearly_better, trial_of
from blora.training.tune import scorer

__all__ = ["Trained", "train_adapter"]

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Trained:
    """The base model of a run, and the validation results of the adapter that was written.

    Attributes:
        base: the base model.
        result: recalibration and metrics of the adapter.
        parts: what simpler methods reach on the same rows, and the candidates for the adapter; none without a head.
    """

    base: BaseModel
    result: Trial
    parts: tuple[Part, ...] = ()


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
    SamplingConfig(n_samples=recipe.n_samples or N_SAMPLES)  # checked here, as the policy is
    check_output(output)
    check_apart(recipe.training.work_dir, output)
    check_tracker(recipe.training.report_to)
    train, validation, prompt = _read(recipe)
    before = seen_by(recipe.init_from)
    check_unseen({SEEN: trained_on(before)}, validation)
    head, layers = plan_of(recipe, prompt)
    if callbacks and layers == "none":
        raise ConfigError("got callbacks for a head alone, which takes no steps: leave them out, or give layers a LoRA")
    processes, device = claim_device(recipe.device)
    base = open_base(recipe.base_model, device=device, dtype=recipe.dtype)
    if base.is_encoder and head != "linear":
        raise ConfigError(
            f"got head {head} on {base.ref.id}, an encoder, which scores no choices, expected a linear head: give the "
            "rows fixed labels, or name them with --choices"
        )
    if base.companion is not None and head != "linear":
        raise ConfigError(
            f"got head {head} on {base.ref.id} with the companion {base.companion.ref.id}, which linear heads alone "
            f"read, expected a linear head or no companion: give the rows fixed labels, or leave the + and what "
            "follows it out of --base-model"
        )
    lora = lora_of(recipe, base, layers, below=head != "none") if layers != "none" else None
    with ExitStack() as claims:
        run = _Run(recipe, base, train, validation, processes, callbacks, claims)
        if head != "none":
            candidates = _with_head(run, replace(prompt, readout=head), lora)
        else:
            assert lora is not None  # `plan_of` refuses neither
            candidates = [_with_lora(run, prompt, *lora)]
        return _write(run, candidates, before, output)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Candidate:
    """An adapter that could be written, with its results on the validation rows.

    Candidates are compared by `judged`, whose recalibration is that of the validation rows alone. With `on_all`, the
    posterior was then fitted to these rows too.
    """

    posterior: Posterior | HeadPosterior
    form: PosteriorConfig
    prompt: PromptConfig
    sampling: SamplingConfig
    result: Trial
    judged: Trial
    seconds: float
    parts: tuple[Part, ...]
    head: HeadConfig | None = None
    familiarity: Familiarity | None = None
    targets: tuple[str, ...] = ()
    modules: dict[str, tuple[int, int]] = field(default_factory=dict)
    on_all: bool = False

    def seen(self, train: ExampleSet, validation: ExampleSet) -> dict[str, str]:
        """Return the fingerprints of the rows by use."""
        of_train, of_validation = fingerprints(train), fingerprints(validation)
        if self.on_all:
            return {"train": joined(of_train, of_validation)}
        return {"train": of_train, "validation": of_validation}


@dataclass(frozen=True, slots=True)
class _Run:
    """Data and settings that every candidate of a run shares."""

    recipe: Recipe
    base: BaseModel
    train: ExampleSet
    validation: ExampleSet
    processes: PartialState
    callbacks: Sequence[TrainerCallback]
    claims: ExitStack

    def packed(self, prompt: PromptConfig) -> tuple[list[LabelledRow], list[LabelledRow]]:
        """Return the training and the validation rows as token rows."""
        return pack_examples(self.train, self.base, prompt), pack_examples(self.validation, self.base, prompt)

    def checkpoint(self, prompt: PromptConfig) -> Path | None:
        """Claim the work folder until the adapter is written; return the checkpoint to resume from, None if none."""
        run = self.recipe.of_training() | {"prompt": asdict(prompt), "base": self.base.ref.fingerprint}
        if self.base.companion is not None:
            run["companion"] = self.base.companion.ref.fingerprint
        run |= {"train": self.train.digest, "validation": self.validation.digest}
        # A step's number tells the epoch for one number of processes alone, and --dtype auto depends on the processor.
        run |= {"processes": self.processes.num_processes, "dtype": self.base.dtype_name}
        if self.recipe.init_from is not None:
            run["init"] = sha256((self.recipe.init_from / WEIGHTS_FILE).read_bytes()).hexdigest()
        work_dir = self.recipe.training.work_dir
        with self.processes.main_process_first():
            if self.processes.is_main_process:
                return self.claims.enter_context(claimed(work_dir, run, resume=self.recipe.training.resume))
            return last_complete(work_dir)


def _write(run: _Run, candidates: Sequence[_Candidate], before: dict[str, str], output: Path) -> Trained:
    """Write the best candidate as an adapter directory, given the fingerprints of the rows that a LoRA saw before."""
    recipe, base, train, validation, processes = run.recipe, run.base, run.train, run.validation, run.processes
    chosen = candidates[0]
    for candidate in candidates[1:]:
        if clearly_better(candidate.judged, chosen.judged, [example.text for example in validation.examples]):
            chosen = candidate
    parts = tuple(part for one in candidates for part in one.parts if one.head is not None)
    config = AdapterConfig(
        base_model=base.ref,
        target_modules=chosen.targets,
        modules=chosen.modules,
        posterior=chosen.form,
        prompt=chosen.prompt,
        sampling=chosen.sampling,
        head=chosen.head,
        familiarity=chosen.familiarity.config if chosen.familiarity is not None else None,
        question=recipe.question.config if recipe.question is not None else None,
        policy=recipe.policy,
        training=_record(recipe, base, train)
        | {
            SEEN: before | chosen.seen(train, validation),
            ON_ALL: chosen.on_all,
            "parts": {part.name: part.metrics.to_dict() for part in parts},
            "validation": {
                "source": validation.source,
                "digest": validation.digest,
                "n_examples": len(validation.examples),
                "n_recalibrating": chosen.result.n_recalibrating,
                "n_samples": chosen.sampling.n_samples,
                **chosen.result.metrics.to_dict(),
            },
        },
    )
    processes.wait_for_everyone()
    if processes.is_main_process:
        save_adapter(output, chosen.posterior, chosen.result.recalibrated(config), base, chosen.familiarity)
        result = chosen.result
        logger.info(
            "wrote %s: validation NLL %.3f, accuracy %.3f, trained for %.0f s",
            *(output, result.metrics.nll, result.metrics.accuracy, chosen.seconds),
        )
        warn_of_few_rows(result.n_rows, result.n_recalibrating)
    processes.wait_for_everyone()  # no process reads the adapter before the main one has written it
    return Trained(base, chosen.result, parts)


def _with_head(run: _Run, prompt: PromptConfig, lora: tuple[tuple[str, ...], Posterior] | None) -> list[_Candidate]:
    """Return the adapter of a head alone and, if there is a LoRA to train below it, of a head above that LoRA."""
    recipe, base = run.recipe, run.base
    sampling = replace(recipe.sampling, n_samples=n_samples_of(recipe, head=True))
    rows, validation_rows = run.packed(prompt)
    on_all = recipe.validation is None  # whoever brings validation rows may want to judge the adapter by them
    began = time.perf_counter()

    def candidate(trained: TrainedHead, targets: tuple[str, ...] = ()) -> _Candidate:
        return _Candidate(
            posterior=trained.posterior,
            form=trained.posterior.lora.config,
            prompt=prompt,
            sampling=sampling,
            result=trained.served,
            judged=trained.trial,
            seconds=time.perf_counter() - began,
            parts=trained.parts,
            head=trained.config,
            familiarity=trained.familiarity,
            targets=targets,
            modules=trained.posterior.lora.modules_shape,
            on_all=on_all and not targets,
        )

    n_layers = n_layers_of(base.model)
    depths = parse_depths(recipe.depths, n_layers) if recipe.depths is not None else None
    if lora is not None and depths is not None and prompt.readout == "linear":
        check_below(lora[1], depths[-1])
    # Before the frozen head is trained, so that a work folder that cannot be used is refused at once.
    checkpoint = run.checkpoint(prompt) if lora is not None else None
    frozen = train_head(base, rows, validation_rows, sampling, depths, on_all=on_all)
    found = [candidate(frozen)]
    if lora is not None:
        targets, below = lora
        above = train_below(
            base, frozen, below, rows, validation_rows, sampling, recipe.training, checkpoint, run.callbacks
        )
        found.append(candidate(above, targets))
    return found


def _with_lora(run: _Run, prompt: PromptConfig, targets: tuple[str, ...], posterior: Posterior) -> _Candidate:
    """Return the adapter of a posterior over a LoRA, or of a plain LoRA."""
    recipe, base, form = run.recipe, run.base, posterior.config
    rows, validation_rows = run.packed(prompt)
    checkpoint = run.checkpoint(prompt)
    logger.info(
        "training on %d rows with %d validation rows; the first row has %d choices",
        len(rows),
        len(validation_rows),
        rows[0].row.n_choices,
    )
    fitted = fit(base, posterior, rows, validation_rows, recipe.training, checkpoint, run.callbacks)
    sampling = replace(recipe.sampling, n_samples=n_samples_of(recipe, head=False))
    cache_gib = recipe.training.trunk_cache_gib
    score = scorer(base, posterior, validation_rows, sampling, cache_gib=cache_gib)
    result = trial_of(1.0, score(1.0), validation_rows)
    return _Candidate(
        posterior=posterior,
        form=form,
        prompt=prompt,
        sampling=sampling,
        result=result,
        judged=result,
        seconds=fitted.seconds,
        parts=(Part(f"LoRA, {form.method}, {sampling.n_samples} draws", result.metrics),),
        targets=targets,
        modules=posterior.modules_shape,
    )


def _read(recipe: Recipe) -> tuple[ExampleSet, ExampleSet, PromptConfig]:
    """Return the training rows, the validation rows, and the prompt settings for both."""
    question = recipe.question
    table = as_plain(read_table(recipe.data, split=recipe.split, columns=recipe.columns), question, training=True)
    choices = question.choices if question is not None else recipe.prompt.choices or label_set(table)
    examples = examples_of(table, choices)
    template = examples.template if recipe.default_template else recipe.prompt.template
    prompt = replace(recipe.prompt, choices=choices, template=template)
    if recipe.validation is None:
        train, validation = split_examples(
            examples, recipe.train_examples, recipe.validation_examples, seed=recipe.split_seed
        )
    else:
        validation = read_examples(
            recipe.validation,
            choices=choices,
            question=question,
            split=recipe.validation_split,
            columns=recipe.columns,
            limit=recipe.validation_examples,
        )
        train = replace(examples, examples=examples.examples[: recipe.train_examples])
        check_disjoint(train, validation)
        warn_of_unseen_choices(choices or (), (example.label for example in validation.examples), "validation")
    warn_of_unseen_choices(choices or (), (example.label for example in train.examples))
    return train, validation, prompt


def _record(recipe: Recipe, base: BaseModel, train: ExampleSet) -> dict[str, object]:
    return {
        "command": recipe.command,
        "revision": revision(),
        "machine": machine(base.device),
        "dtype": base.dtype_name,
        "settings": recipe.of_training()["training"],
        "init_from": str(recipe.init_from) if recipe.init_from is not None else None,
        "train": {"source": train.source, "digest": train.digest, "n_examples": len(train.examples)},
    }
