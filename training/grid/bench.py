"""What every method of a benchmark shares: model, modules, rows and budget."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from blora.base_model import BaseModel
from blora.config import PromptConfig
from blora.posterior.inject import default_targets, inject, parse_layers, select_modules
from training.data import read_examples, split_examples
from training.rows import LabelledRow, pack_examples
from training.trunk import with_states

__all__ = ["Bench", "Source", "TestSet", "set_up"]


@dataclass(frozen=True, slots=True)
class Source:
    """A named data file.

    Attributes:
        name: what results call it.
        path: a .jsonl or .csv file.
        shift: whether its questions are of another distribution than the training questions.
    """

    name: str
    path: str
    shift: bool = False


@dataclass(frozen=True, slots=True)
class TestSet:
    """Rows to test on."""

    source: Source
    digest: str
    rows: Sequence[LabelledRow]


@dataclass(frozen=True, slots=True)
class Bench:
    """The common ground of a benchmark.

    Attributes:
        base: the frozen base model, with `LoraLinear` at the modules.
        modules: (d_out, d_in) of each adapted module.
        trained_on: name of the training set.
        train, validation: disjoint rows of one file.
        tests: by name; those of the training distribution first.
        epochs: of every method that is trained.
        n_samples: draws of every method that draws.
        work: folder of what is trained and computed.
    """

    base: BaseModel
    modules: Mapping[str, tuple[int, int]]
    trained_on: str
    train: Sequence[LabelledRow]
    validation: Sequence[LabelledRow]
    tests: Mapping[str, TestSet]
    epochs: int
    n_samples: int
    work: Path


def set_up(
    base: BaseModel,
    train: Source,
    tests: Sequence[Source],
    *,
    layers: str,
    n_train: int,
    n_validation: int,
    shift_limit: int | None,
    epochs: int,
    n_samples: int,
    work: Path,
) -> Bench:
    """Reads and tokenises everything, and runs the trunk below the adapted layers once for each row.

    Args:
        base: the base model; gets layers.
        train: where training and validation rows come from.
        tests: what to test on.
        layers: which decoder layers to adapt: see `parse_layers`.
        n_train: training rows.
        n_validation: validation rows.
        shift_limit: rows of a shifted set, None for all.
        epochs: see `Bench`.
        n_samples: see `Bench`.
        work: see `Bench`.

    Raises:
        BloraError: for bad data or layers.
    """
    indices = parse_layers(layers, base.model.config.get_text_config().num_hidden_layers)
    modules = select_modules(base.model, default_targets(base.model.config.model_type), indices)
    inject(base.model, modules)
    examples = read_examples(train.path)
    prompt = PromptConfig(template=examples.template)
    parts = split_examples(examples, n_train, n_validation, seed=0)
    rows = [with_states(base.model, pack_examples(part, base, prompt), min(indices)) for part in parts]
    sets = {}
    for source in sorted(tests, key=lambda source: source.shift):
        found = read_examples(source.path)
        found = replace(found, examples=found.examples[: shift_limit if source.shift else None])
        known = with_states(base.model, pack_examples(found, base, prompt), min(indices))
        sets[source.name] = TestSet(source, found.digest, known)
    return Bench(
        base=base,
        modules=modules,
        trained_on=train.name,
        train=rows[0],
        validation=rows[1],
        tests=sets,
        epochs=epochs,
        n_samples=n_samples,
        work=work,
    )
