"""The familiarity of labelled rows, for an adapter that exists.

The rows need not be those that the adapter was trained on, and labels serve to choose the kind of distance alone. An
adapter keeps the fingerprints of the rows, because a calibration on them would call too few questions unfamiliar.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from blora.adapter import check_output, read_config, save_adapter
from blora.adapter.opening import open_adapter
from blora.decision.temperature import temper
from blora.errors import AdapterError, ConfigError
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.noise import generator_of
from blora.training.caveats import warn_of_reference
from blora.training.head.familiarity import FittedFamiliarity, familiarity_of, with_guesses
from blora.training.head.features import read_features
from blora.training.rows.examples import examples_for, split_examples
from blora.training.rows.overlap import SEEN, check_disjoint, fingerprints, seen_among, trained_on
from blora.training.rows.packed import pack_examples
from blora.training.rows.sources import Rows

__all__ = ["familiarize_adapter"]

logger = logging.getLogger(__name__)


def familiarize_adapter(
    path: Path,
    output: Path,
    data: Rows,
    validation: Rows | None = None,
    *,
    base_model: str | None = None,
    device: str = "auto",
    dtype: str = "auto",
    split: str = "train",
    validation_split: str = "validation",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> FittedFamiliarity:
    """Fit a familiarity to an adapter with a head, and write the adapter with it.

    Args:
        path: the adapter's directory.
        output: the directory to write; if it is `path`, the adapter is replaced.
        data: labelled rows of the kind that is familiar, such as the training rows, in any form that `read_examples`
            takes; they are checked before the base model is loaded.
        validation: further rows of this kind; None for a tenth of the rows, drawn with seed 0.
        base_model: as for `open_adapter`.
        device: as for `load_base_model`.
        dtype: as for `load_base_model`.
        split: the split of a hub data set to load.
        validation_split: the split of a hub data set given as `validation`.
        columns: our column names, mapped to the data's own names.
        limit: number of rows to use from the top, None for all.

    Raises:
        BloraError: if the adapter has no head, or the rows are unusable.
    """
    check_output(output)
    config = read_config(path)
    if config.head is None:
        raise AdapterError(
            f"got adapter {path} without a decision head, expected one with a head, whose states a familiarity reads: "
            "train one with --head auto"
        )
    if validation is None and validation_split != "validation":
        raise ConfigError("got --validation-split without --validation, whose split it is: give both, or neither")
    examples = examples_for(config, data, split=split, columns=columns, limit=limit)
    if validation is None:
        examples, held = split_examples(examples, None, None, seed=0)
    else:
        held = examples_for(config, validation, split=validation_split, columns=columns)
        check_disjoint(examples, held)
    base, adapter = open_adapter(path, base_model=base_model, device=device, dtype=dtype)
    posterior = adapter.posterior
    assert isinstance(posterior, HeadPosterior)  # its config has a head
    lora = posterior.lora.mean().to(base.device)
    rows, others = (pack_examples(part, base, config.prompt) for part in (examples, held))
    read = [read_features(base.model, part, config.head, lora, "reading states") for part in (rows, others)]
    draws = posterior.sample(config.sampling.n_samples, generator_of(config.sampling.seed))
    log_probs = head_log_probs(draws, [row.row for row in others], read[1])
    probs = temper(log_probs, config.sampling.temperature, config.sampling.lapse)
    found = familiarity_of(config.head.depths, read[0], rows, read[1], others)
    found = replace(found, familiarity=with_guesses(found.familiarity, probs, others))
    known = config.training.get(SEEN, {})
    n_trained_on = len(seen_among(held, {SEEN: trained_on(known)}))
    guesses = found.familiarity.config.guesses_beyond is not None
    warn_of_reference(len(others), n_trained_on, guesses=guesses)
    seen = {"familiarity": fingerprints(examples), "reference": fingerprints(held)}
    record = {
        "source": examples.source,
        "digest": examples.digest,
        "n_examples": len(examples.examples),
        "n_reference": len(held.examples),
        "candidates": {candidate.kind: candidate.auroc for candidate in found.candidates},
    }
    config = replace(
        config,
        familiarity=found.familiarity.config,
        training=config.training | {"familiarity": record, SEEN: known | seen},
    )
    save_adapter(output, posterior, config, base, found.familiarity)
    logger.info("wrote %s with the familiarity of %d rows", output, len(rows))
    return found
