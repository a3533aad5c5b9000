"""The common ground of all methods: model, modules, rows and budget."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from benchmarks.calibration.store import cached
from blora.base_model import BaseModel
from blora.config import PosteriorConfig, PromptConfig
from blora.errors import ConfigError
from blora.inference.fork import runs_in_parts
from blora.posterior.inject import default_targets, inject, parse_layers, select_modules
from blora.training.config import TrainConfig
from blora.training.lora.trunk import attach_states, trunk_states
from blora.training.rows.examples import ExampleSet, read_examples, split_examples
from blora.training.rows.packed import LabelledRow, pack_examples

__all__ = ["Bench", "Source", "TestSet", "set_up"]


@dataclass(frozen=True, slots=True)
class Source:
    """A named data file.

    Attributes:
        name: its name in results.
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
        work: folder for trained weights and computed probabilities.
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
    """Read and tokenise all rows, and run the trunk below the adapted layers once for each.

    Args:
        base: the base model; gets layers.
        train: file of the training and validation rows.
        tests: files to test on.
        layers: which decoder layers to adapt: see `parse_layers`.
        n_train: training rows.
        n_validation: validation rows.
        shift_limit: rows of a shifted set, None for all.
        epochs: see `Bench`.
        n_samples: see `Bench`.
        work: see `Bench`.

    Raises:
        BloraError: for bad data or layers, or a work folder of other settings.
    """
    indices = parse_layers(layers, base.model.config.get_text_config().num_hidden_layers)
    sources = {source.name: read_examples(source.path).digest for source in (train, *tests)}
    _claim(
        work,
        {
            "base_model": f"{base.ref.id} {base.ref.fingerprint}",
            "dtype": str(base.dtype),
            "layers": layers,
            "rows": [n_train, n_validation, shift_limit],
            "sources": sources,
            "epochs": epochs,
            "n_samples": n_samples,
            "posterior": asdict(PosteriorConfig()),
            "training": asdict(TrainConfig(work_dir=Path())) | {"work_dir": None},
        },
    )
    modules = select_modules(base.model, default_targets(base.model), indices)
    inject(base.model, modules)
    examples = read_examples(train.path)
    prompt = PromptConfig(template=examples.template)
    parts = split_examples(examples, n_train, n_validation, seed=0)
    rows = [
        _rows(base, part, prompt, min(indices), work / f"trunk-{name}-{len(part.examples)}.safetensors")
        for name, part in zip(("train", "validation"), parts, strict=True)
    ]
    sets = {}
    for source in sorted(tests, key=lambda source: source.shift):
        found = read_examples(source.path)
        found = replace(found, examples=found.examples[: shift_limit if source.shift else None])
        file = work / f"trunk-{source.name}-{len(found.examples)}.safetensors"
        sets[source.name] = TestSet(source, found.digest, _rows(base, found, prompt, min(indices), file))
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


def _rows(base: BaseModel, examples: ExampleSet, prompt: PromptConfig, layer: int, file: Path) -> list[LabelledRow]:
    """Return tokenised rows with the trunk's states, which are kept in a file."""
    rows = pack_examples(examples, base, prompt)
    if layer == 0 or not runs_in_parts(base.model):
        return rows
    states = cached(file, lambda: {"states": trunk_states(base.model, rows, layer)})
    return attach_states(rows, layer, states["states"])


def _claim(work: Path, settings: dict[str, object]) -> None:
    """Raise where other settings made the contents of the work folder."""
    file, text = work / "settings.json", json.dumps(settings, indent=1) + "\n"
    if not file.is_file():
        work.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    elif file.read_text() != text:
        raise ConfigError(
            f"got work folder {work} of a benchmark with other settings, expected those in {file}; remove the folder"
        )
