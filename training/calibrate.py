"""Calibration of an adapter on labelled rows that it has not seen, written into the adapter's directory."""

import logging
from dataclasses import replace

from blora.adapter import Adapter, adapter_digest, calibration_file
from blora.base_model import BaseModel
from blora.decision.asks import AskedRows
from blora.decision.calibrate import calibrate
from blora.decision.calibration import VLLM, Binding, Calibration, FormName, Goal
from blora.decision.selective import split_rows
from blora.disk.cache import check_own
from blora.errors import AdapterError
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import HeadDraws
from blora.training.caveats import warn_of_unseen_choices, warn_of_worse_choices
from blora.training.evaluate import predict_with_distances
from blora.training.rows.examples import ExampleSet, one_for_each_text
from blora.training.rows.overlap import check_distinct, check_unseen, fingerprints
from blora.training.rows.packed import labels_of, pack_examples
from blora.training.through_vllm import Vllm, check_vllm, predict_through_vllm

__all__ = ["calibrate_adapter"]

logger = logging.getLogger(__name__)


def calibrate_adapter(
    adapter: Adapter,
    base: BaseModel,
    examples: ExampleSet,
    goal: Goal,
    *,
    split: str = "test",
    limit: int | None = None,
    vllm: Vllm | None = None,
) -> Calibration:
    """Prove thresholds on rows scored with the adapter's own draws, and write them into its `calibration.json`.

    Args:
        adapter: the adapter, as `blora.adapter.opening.open_adapter` returns it.
        base: the adapter's base model; the calibration holds only for this dtype, or for vLLM.
        examples: labelled questions that played no part in making the adapter.
        goal: the guarantee to prove.
        split: name of the examples' split, for the record.
        limit: number of examples to use, each about another text, those of the earliest rows; None for all.
        vllm: a running vLLM for whose states the calibration shall hold; None for this process.

    Raises:
        BloraError: if the adapter is in the hub's cache, if it was made with this data or some of these questions, if a
            question comes twice, if earlier asks have used up the rows, if the rows do not prove the goal, or if the
            adapter's files have changed since it was loaded. A failed proof adds its ask to `calibration.json` and
            changes nothing else there; an error that comes before any label is compared with an answer adds none.
    """
    check_own(adapter.path)
    _check_current(adapter)
    if vllm is not None:
        check_vllm(vllm, adapter, base)
    dtype = VLLM if vllm is not None else base.dtype_name
    path, prompt, sampling = adapter.path, adapter.config.prompt, adapter.config.sampling
    every, examples = examples, one_for_each_text(examples, seed=goal.seed, limit=limit)
    texts = {example.text for example in examples.examples}
    about_them = replace(every, examples=tuple(example for example in every.examples if example.text in texts))
    check_unseen(adapter.config.training, about_them)
    check_distinct(about_them)
    if len(examples.examples) < len(about_them.examples):
        logger.warning(
            "calibrating on %d of %d questions, one for each text: several about one text are not independent",
            *(len(examples.examples), len(about_them.examples)),
        )
    warn_of_unseen_choices(prompt.choices or (), (example.label for example in examples.examples), "calibration")
    rows = pack_examples(examples, base, prompt)
    if adapter.familiarity is None:
        goal = replace(goal, max_false_alarms=1.0)
    goal.check_rows(len(rows))
    goal.check_draws(sampling.n_samples)
    if goal.max_missed < 1:
        goal.check_choices(examples.choices, labels_of(rows)[split_rows(len(rows), goal.seed)[1]])
    asked = AskedRows(
        adapter_digest=adapter.digest,
        digest=examples.digest,
        n_rows=len(examples.examples),
        fingerprints=fingerprints(examples),
        asks=(goal.ask_in(dtype),),
    )
    calibration_file.check_ask(path, asked)  # fails before the scoring if the rows are used up
    bank = SampleBank.draw(adapter.posterior, adapter.digest, sampling.n_samples, sampling.seed)
    if vllm is not None:
        assert isinstance(bank.draws, HeadDraws)  # see `check_vllm`
        log_probs, distances = predict_through_vllm(vllm, adapter, base, rows, bank.draws)
    else:
        log_probs, distances = predict_with_distances(
            base.model, rows, bank.draws, adapter.familiarity, about="calibrating"
        )
    _check_current(adapter)
    calibration = calibrate(
        log_probs,
        labels_of(rows),
        binding=Binding.of(adapter.config, adapter_digest=adapter.digest, dtype=dtype),
        goal=goal,
        source=examples.source,
        digest=examples.digest,
        split=split,
        forms=[_form(example.kind) for example in examples.examples],
        earlier=lambda: calibration_file.record_ask(path, asked),  # before the result: a failed ask counts
        distances=distances,
        guesses=adapter.familiarity.guesses(distances) if adapter.familiarity and distances is not None else None,
        choices=examples.choices,
    )
    _check_current(adapter)
    calibration_file.store_calibration(path, calibration)
    level = calibration.default_level
    logger.info(
        "%d rows prove for %s in %s: P(wrong | answered) <= %g, with a threshold of %.6g on %s and %.1f %% answered",
        *(len(rows), adapter.name, dtype, level.target_risk, level.threshold, level.score),
        100 * (level.coverage or 0),
    )
    warn_of_worse_choices(calibration)
    return calibration


def _check_current(adapter: Adapter) -> None:
    """Raise an error unless the adapter's files are those that were loaded, so that the calibration is theirs."""
    if adapter_digest(adapter.path) != adapter.digest:
        raise AdapterError(
            f"got adapter {adapter.path}, whose files have changed since it was loaded, expected the same: load it "
            "again and calibrate that"
        )


def _form(kind: str) -> FormName:
    """Return the form of a request for a question of this kind; the adapter's template wraps both kinds of text."""
    return "messages" if kind == "messages" else "prompt"
