"""The rows of the peers' table whose base model is a sentence encoder."""

import pytest
import torch

from benchmarks.peers import encoder
from benchmarks.peers.reading import read_set
from benchmarks.peers.regressions import Parts, on_embeddings, on_words, on_words_and_embeddings
from benchmarks.peers.results import measure
from benchmarks.peers.table import ENCODER, MULTIPLIED, peers
from blora.errors import BaseModelError
from tests.benchmarks.test_peers import linear
from tests.sentences import needs_sentences


@needs_sentences
@pytest.mark.model
def test_a_sentence_encoder_is_measured_and_shown_beside_the_other_methods() -> None:
    base, task = encoder.load_encoder(), linear()
    assert base.is_encoder
    read = read_set(base, task)
    assert read.config.depths == (4, 6)
    result = measure(task, encoder.methods(task, base, read, None))
    names = [row["method"] for row in result["rows"]][::2]
    simple = ["regression on sentence embeddings", "regression on words and sentence embeddings"]
    simple += ["regression on frozen states", MULTIPLIED]
    assert names == [f"{name}, {ENCODER}" for name in (*simple, "head, posterior mean", "head, 64 draws")]
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": ENCODER, "dtype": "float32"}
    measured = result | about | {"set": "demo", "embedded_ms": 10.0, "encoder_ms": 2.0}
    shown = peers([measured | {"rows": []}], [measured], [])
    assert all(f"| {name} |" in shown for name in names)
    assert "A text alone takes 0.20 (demo) of the time that the embedded model takes" in shown


def test_words_and_embeddings_use_what_either_lacks() -> None:
    """A word tells one label from the others, and an embedding another one."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(40)
    texts = ["a refund please" if label == 0 else "hello there" for label in labels.tolist()]
    embeddings = 0.01 * torch.randn(120, 4, generator=generator)
    embeddings[:, 0] += 1
    embeddings[labels == 1, 1] += 1
    names = ("train", "validation", "test")
    words = Parts(dict.fromkeys(names, texts), labels, labels)
    states = Parts(dict.fromkeys(names, embeddings.numpy()), labels, labels)

    def right(log_probs: torch.Tensor) -> float:
        return float((log_probs[0].argmax(-1) == labels).float().mean())

    assert right(on_words(words).test) < 0.9
    assert right(on_embeddings(states).test) < 0.9
    assert right(on_words_and_embeddings(words, states).test) == 1


def test_a_wheel_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(encoder, "PACKAGE", "no_such_package")
    with pytest.raises(
        BaseModelError, match=f"no wheel with {ENCODER}, expected it to be installed: run `make encoder`"
    ):
        encoder.load_encoder()
