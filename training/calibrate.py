"""Calibration of an adapter on labelled rows that it has not seen: scored, proved, and kept beside it."""

import logging

import torch

from blora import calibration_file
from blora.adapter import Adapter
from blora.base_model import BaseModel
from blora.decision.asks import AskedRows, earlier_asks
from blora.decision.calibrate import calibrate
from blora.decision.calibration import Binding, Calibration, FormName, Goal
from blora.posterior.bank import SampleBank
from blora.training.data import ExampleSet
from blora.training.evaluate import predict_all
from blora.training.overlap import check_distinct, check_unseen, fingerprints
from blora.training.rows import pack_examples

__all__ = ["calibrate_adapter"]

logger = logging.getLogger(__name__)


def calibrate_adapter(
    adapter: Adapter, base: BaseModel, examples: ExampleSet, goal: Goal, *, split: str = "test"
) -> Calibration:
    """Score rows under the adapter's own bank and write what they prove into its `calibration.json`.

    Args:
        adapter: as `blora.opening.open_adapter` gives it.
        base: its base model; the calibration holds for this dtype alone.
        examples: labelled questions that played no part in making the adapter.
        goal: what is to be proved.
        split: of their data set, for the record.

    Raises:
        BloraError: if the adapter was made with this data or some of these questions, if a question comes twice, if
            earlier asks have used the rows up, or if the rows do not prove the goal; of a goal that is not proved the
            file remembers that it was asked, and nothing else in it changes.
    """
    path, prompt, sampling = adapter.path, adapter.config.prompt, adapter.config.sampling
    remembered = calibration_file.asked(path)  # a file that could not be kept is told before the work
    check_unseen(adapter.config.training, examples)
    check_distinct(examples)
    rows = pack_examples(examples, base, prompt)
    goal.check_rows(len(rows))
    asked = AskedRows(
        adapter_digest=adapter.digest,
        digest=examples.digest,
        n_rows=len(rows),
        fingerprints=fingerprints(examples),
        asks=(goal.ask,),
    )
    earlier = earlier_asks(remembered, asked, goal.ask)
    bank = SampleBank.draw(adapter.posterior, adapter.digest, sampling.n_samples, sampling.seed)
    log_probs = predict_all(base.model, rows, bank.draws, about="calibrating")
    calibration_file.remember(path, asked)  # before anybody knows the answer
    calibration = calibrate(
        log_probs,
        torch.tensor([row.label for row in rows]),
        binding=Binding.of(adapter.config, adapter_digest=adapter.digest, dtype=base.dtype_name),
        goal=goal,
        source=examples.source,
        digest=examples.digest,
        split=split,
        forms=[_form(example.kind) for example in examples.examples],
        earlier=earlier,
    )
    calibration_file.store(path, calibration)
    level = calibration.default_level
    logger.info(
        "%d rows prove for %s in %s: P(wrong | answered) <= %g with %s at a threshold of %.6g, which answers %.1f %%",
        *(len(rows), adapter.name, base.dtype_name, level.target_risk, level.score, level.threshold),
        100 * (level.coverage or 0),
    )
    return calibration


def _form(kind: str) -> FormName:
    """In which a request asks a question that a row has as this kind: the adapter's template wraps every plain text."""
    return "messages" if kind == "messages" else "prompt"
