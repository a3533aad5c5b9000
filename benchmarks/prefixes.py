"""Whether an adapter tells labels apart that begin alike as well as labels that do not.

`python -m benchmarks.prefixes` asks the demo's tickets under 200 sets of label names. In each set one queue keeps its
name and some others are named after it as well. Where the names begin alike, "billing: data export" stands beside
"billing"; where they do not, it is "data export: billing". Three adapters are trained, on the demo's training tickets
with a new set for every ticket: on either way of naming with ends, and on names that begin alike without. The same test
tickets under the same sets judge them.
"""

import json
import random
from dataclasses import replace
from pathlib import Path

from benchmarks.result_files import about, write
from benchmarks.server_process import ROOT, TICKET, TRIAGE
from blora.base_model import BaseModel, load_base_model
from blora.config import ChoiceEnd, PosteriorConfig, PromptConfig
from blora.posterior.bank import SampleBank
from blora.posterior.inject import default_targets, eject, inject, parse_layers, select_modules
from blora.posterior.posterior import Posterior
from blora.training.config import TrainConfig
from blora.training.evaluate import predict_all
from blora.training.lora.trainer import fit
from blora.training.lora.trunk import with_states
from blora.training.rows.examples import Example, ExampleSet, read_examples
from blora.training.rows.packed import LabelledRow, labels_of, pack_examples

__all__ = ["label_sets", "renamed"]

RESULT = ROOT / "benchmarks" / "results" / "prefixes" / "result.json"
WORK = ROOT / "runs" / "prefixes"
LAYERS = "last:10"
EPOCHS, N_SAMPLES, N_SETS, TICKETS_PER_SET = 4, 4, 200, 10
WAYS: dict[str, tuple[bool, ChoiceEnd]] = {
    "begin alike, with an end": (True, "newline"),
    "do not begin alike, with an end": (False, "newline"),
    "begin alike, without an end": (True, "none"),
}

LabelSet = tuple[int, frozenset[int]]


def label_sets(n_sets: int, n_labels: int, seed: int) -> list[LabelSet]:
    """Return for each set the label that others are named after, and those others: one at least."""
    picked = random.Random(seed)
    found = []
    for _ in range(n_sets):
        root, *others = picked.sample(range(n_labels), n_labels)
        found.append((root, frozenset(others[: picked.randint(1, len(others))])))
    return found


def renamed(labels: list[str], names: LabelSet, *, alike: bool) -> list[str]:
    """Return the labels' names in a set.

    >>> renamed(["billing", "data export", "security"], (0, frozenset({1})), alike=True)
    ['billing', 'billing: data export', 'security']
    >>> renamed(["billing", "data export", "security"], (0, frozenset({1})), alike=False)
    ['billing', 'data export: billing', 'security']
    """
    root, others = names

    def name(i: int) -> str:
        if i not in others:
            return labels[i]
        return f"{labels[root]}: {labels[i]}" if alike else f"{labels[i]}: {labels[root]}"

    return [name(i) for i in range(len(labels))]


def asked(examples: list[Example], sets: list[LabelSet], labels: list[str], *, alike: bool) -> ExampleSet:
    """Return each example with the names of its own set."""
    found = [
        replace(example, choices=tuple(renamed(labels, names, alike=alike)))
        for example, names in zip(examples, sets, strict=True)
    ]
    return ExampleSet(source="examples/triage", digest="", examples=tuple(found))


def right(base: BaseModel, parts: list[ExampleSet], end: ChoiceEnd, work_dir: Path) -> list[bool]:
    """Train on the first part, choose the epoch by the second, and return which rows of the third are right."""
    eject(base.model)
    layers = parse_layers(LAYERS, base.model.config.get_text_config().num_hidden_layers)
    prompt = PromptConfig(template=TICKET, choice_end=end)
    rows: list[list[LabelledRow]] = [
        with_states(base.model, pack_examples(part, base, prompt), layers[0]) for part in parts
    ]
    train, validation, test = rows
    modules = select_modules(base.model, default_targets(base.model), layers)
    inject(base.model, modules)
    posterior = Posterior(modules, PosteriorConfig(), 0)
    fit(base, posterior, train, validation, TrainConfig(work_dir=work_dir, epochs=EPOCHS))
    draws = SampleBank.draw(posterior, work_dir.name, N_SAMPLES, 0).draws
    leaders = predict_all(base.model, test, draws).exp().mean(0).argmax(-1)
    return [bool(found) for found in leaders == labels_of(test)]


def main() -> None:
    """Train and judge what the result does not have yet."""
    labels = json.loads((TRIAGE / "adapter" / "bayesian_config.json").read_text())["prompt"]["choices"]
    train, validation, test = (
        list(read_examples(str(TRIAGE / f"{name}.jsonl"), choices=tuple(labels)).examples)
        for name in ("train", "validation", "test")
    )
    picked = random.Random(0)
    test = [example for _ in range(N_SETS) for example in picked.sample(test, TICKETS_PER_SET)]
    sets = label_sets(N_SETS, len(labels), seed=0)
    found = json.loads(RESULT.read_text()) if RESULT.is_file() else {"ways": {}}
    base = load_base_model("embedded", device="cpu", dtype="auto")
    for way, (alike, end) in WAYS.items():
        if way in found["ways"]:
            continue
        parts = [
            asked(train, label_sets(len(train), len(labels), seed=1), labels, alike=alike),
            asked(validation, label_sets(len(validation), len(labels), seed=2), labels, alike=alike),
            asked(test, [names for names in sets for _ in range(TICKETS_PER_SET)], labels, alike=alike),
        ]
        answers = right(base, parts, end, WORK / way.replace(" ", "-"))
        found["ways"][way] = {"accuracy": sum(answers) / len(answers), "right": "".join("01"[a] for a in answers)}
        found |= {
            "n_sets": N_SETS,
            "n_questions": len(test),
            "dtype": base.dtype_name,
            **about("python -m benchmarks.prefixes"),
        }
        write(RESULT, found)


if __name__ == "__main__":
    main()
