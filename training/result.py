"""Result objects of an evaluation: the metrics, and everything needed to reproduce them."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from blora.adapter import Adapter, read_config
from blora.adapter.opening import open_adapter, open_base
from blora.base_model import EMBEDDED
from blora.config import PromptConfig
from blora.posterior.bank import SampleBank
from blora.training.evaluate import Evaluation, evaluate_nested
from blora.training.provenance import command_line, machine, revision
from blora.training.rows.examples import ExampleSet, examples_for, examples_of
from blora.training.rows.labels import label_set
from blora.training.rows.overlap import SEEN, seen_among
from blora.training.rows.packed import pack_examples
from blora.training.rows.questions import as_plain
from blora.training.rows.sources import read_table

__all__ = ["results"]

logger = logging.getLogger(__name__)


def results(
    folder: Path | None,
    *,
    data: str,
    base_model: str | None,
    device: str,
    dtype: str,
    split: str,
    columns: Mapping[str, str] | None,
    limit: int | None,
    n_samples: Sequence[int] | None,
    seed: int | None,
    argv: Sequence[str],
) -> Iterator[tuple[Evaluation, dict[str, object]]]:
    """Yield an evaluation and its result object for each number of draws.

    Args:
        folder: the adapter to evaluate, None for the base model alone.
        data: a file or hub data set; the rows are checked before the base model is loaded.
        base_model: as for `open_base`, None for the adapter's own.
        device: as for `load_base_model`.
        dtype: as for `load_base_model`.
        split: name of the split; of a hub data set, the one to load.
        columns: our column names, mapped to the data's own names.
        limit: number of rows to use from the top, None for all.
        n_samples: numbers of draws, None for the adapter's. The base model and plain LoRA always have one.
        seed: seed of the draws, None for the adapter's.
        argv: the arguments of the command, for the record.
    """
    adapter: Adapter | None = None
    if folder is not None:
        examples = examples_for(read_config(folder), data, split=split, columns=columns, limit=limit)
        base, adapter = open_adapter(folder, base_model=base_model, device=device, dtype=dtype)
    else:
        table = as_plain(read_table(data, split=split, columns=columns), None)
        examples = examples_of(table, label_set(table), limit)
        base = open_base(base_model or EMBEDDED, device=device, dtype=dtype)
    prompt = adapter.config.prompt if adapter is not None else PromptConfig(template=examples.template)
    rows = pack_examples(examples, base, prompt)
    draws = None
    counts: Sequence[int] = [1]
    record: dict[str, object] = {"method": "base", "adapter_digest": None}
    if adapter is not None:
        sampling, posterior = adapter.config.sampling, adapter.config.posterior
        seed = sampling.seed if seed is None else seed
        head = adapter.config.head
        if posterior.method == "bayesian" or head is not None:
            counts = n_samples or [sampling.n_samples]
        draws = SampleBank.draw(adapter.posterior, adapter.digest, max(counts), seed).draws.to(base.device)
        record = {
            "method": "head" if head is not None else posterior.method,
            "family": posterior.family if posterior.method == "bayesian" else None,
            "adapter_digest": adapter.digest,
            "n_seen": _warn_of_seen(examples, adapter),
            "training": {name: value for name, value in adapter.config.training.items() if name != SEEN},
        }
    common: dict[str, object] = {
        "base_model": base.ref.id,
        "dataset": examples.source,
        "dataset_digest": examples.digest,
        "split": split,
        "seed": seed,
        "scoring": prompt.scoring,
        "temperature": adapter.config.sampling.temperature if adapter is not None else 1.0,
        "length_power": prompt.length_power,
        "lapse": adapter.config.sampling.lapse if adapter is not None else 0.0,
        "dtype": base.dtype_name,
        "machine": machine(base.device),
        "command": command_line("evaluate", list(argv)),
        "revision": revision(),
    }
    served, familiarity = (adapter.config.sampling, adapter.familiarity) if adapter is not None else (None, None)
    for found in evaluate_nested(base.model, rows, draws, counts, served, familiarity, examples.choices):
        yield found, record | common | _figures(found, len(rows))


def _warn_of_seen(examples: ExampleSet, adapter: Adapter) -> int:
    """Return the number of rows that the adapter was made with, and log a warning if there are any."""
    seen = seen_among(examples, adapter.config.training)
    if seen:
        logger.warning(
            "the adapter was made with %d of these %d rows, such as %s (%s): it does worse on new ones",
            *(len(seen), len(examples.examples), *seen[0]),
        )
    return len(seen)


def _figures(result: Evaluation, n_examples: int) -> dict[str, object]:
    return {
        "n_examples": n_examples,
        "n_samples": result.n_samples,
        **result.metrics.to_dict(),
        "mean_confidence": result.mean_confidence,
        "mean_mutual_information": result.mean_mutual_information,
        "seconds": result.seconds,
        "choices": [counts.to_dict() for counts in result.choices],
    }
