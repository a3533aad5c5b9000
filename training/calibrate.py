"""Calibration of an adapter on labelled rows that it has not seen: scored, proved, and kept beside it."""

from dataclasses import replace
from pathlib import Path

import torch

from blora import calibration_file
from blora.adapter import attach, load_adapter
from blora.base_model import load_base_model
from blora.decision.asks import AskedRows, earlier_asks
from blora.decision.calibrate import calibrate
from blora.decision.calibration import Binding, Calibration, FormName, Goal
from blora.inference.architecture import check_packing
from blora.posterior.bank import SampleBank
from blora.training.data import read_examples
from blora.training.evaluate import predict_all
from blora.training.overlap import check_distinct, check_unseen, fingerprints
from blora.training.rows import pack_examples

__all__ = ["calibrate_adapter"]


def calibrate_adapter(
    path: Path,
    *,
    base_model: str,
    device: str,
    dtype: str,
    data: str,
    split: str,
    limit: int | None,
    goal: Goal,
) -> Calibration:
    """Scores rows under the adapter's own bank and writes what they prove into its `calibration.json`.

    Args:
        path: the adapter's folder.
        base_model: see `load_base_model`.
        device: where to score.
        dtype: of the base model, for which alone the calibration holds.
        data: a file or hub data set.
        split: which split it is.
        limit: rows from its start, None for all.
        goal: what is to be proved.

    Raises:
        BloraError: if the adapter was made with this data or some of these questions, if a question comes twice, if
            earlier asks have used the rows up, or if the rows do not prove the goal; of a goal that is not proved the
            file remembers that it was asked, and nothing else in it changes.
    """
    base = load_base_model(base_model, device=device, dtype=dtype)
    check_packing(base)
    adapter = load_adapter(path, base)
    remembered = calibration_file.asked(path)  # a file that could not be kept is told before the work
    prompt, sampling = adapter.config.prompt, adapter.config.sampling
    examples = read_examples(data, choices=prompt.choices, split=split)
    examples = replace(examples, examples=examples.examples[:limit])
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
    attach(base, adapter)
    bank = SampleBank.draw(adapter.posterior, adapter.digest, sampling.n_samples, sampling.seed)
    log_probs = predict_all(base.model, rows, bank.draws.to(base.device))
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
    return calibration


def _form(kind: str) -> FormName:
    """In which a request asks a question that a row has as this kind: the adapter's template wraps every plain text."""
    return "messages" if kind == "messages" else "prompt"
