"""The cheapest classifiers for fixed labels: a logistic regression on words, on states of a model, or on embeddings.

All are scikit-learn's. Of a few penalties the one with the lowest NLL on validation rows is kept.
"""

import time
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor

from benchmarks.peers.figures import Scored
from blora.decision.metrics import nll
from blora.decision.temperature import fit_recalibration

__all__ = ["Parts", "best_of", "on_embeddings", "on_states", "on_words", "on_words_and_embeddings"]

# Texts, states or counts (N, F), of one part, and of all parts by name.
Input = Sequence[str] | NDArray[np.float32] | csr_matrix
Inputs = Mapping[str, Input]
Classifier = Pipeline | LogisticRegression

# Candidates for C, the inverse of the penalty.
FOR_WORDS = (3, 10, 30, 100)
FOR_STATES = (0.001, 0.003, 0.01, 0.03)
FOR_EMBEDDINGS = (1, 3, 10, 30, 100)
# Length of an embedding beside words and characters, each of length 1.
EMBEDDINGS_WEIGH = 2.0
# Against log 0: a probability of 0 would mean a choice that the row does not have.
LEAST = torch.finfo(torch.float32).tiny


class Parts(NamedTuple):
    """Inputs of the rows of each part, and labels of the training and the validation rows.

    Attributes:
        inputs: texts, states or counts (N, F), of train, validation and test, and of foreign and proof if there are
            any.
        train: (N,) labels of the training rows, every one of C labels among them.
        validation: (V,) labels of the validation rows.
    """

    inputs: Inputs
    train: Tensor
    validation: Tensor


def on_words(parts: Parts) -> Scored:
    """Return a regression on TF-IDF of words, pairs of words and two to five characters."""

    def pipeline(inverse_penalty: float) -> Pipeline:
        return make_pipeline(_words(), LogisticRegression(C=inverse_penalty, max_iter=1000))

    return _scored("TF-IDF regression", [pipeline(c) for c in FOR_WORDS], parts)


def _words() -> FeatureUnion:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_union(words, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))


def on_states(parts: Parts) -> Scored:
    """Return a regression on standardised states (N, F); its seconds do without the reading of the states."""

    def pipeline(inverse_penalty: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000))

    return _scored("regression on frozen states", [pipeline(c) for c in FOR_STATES], parts)


def on_words_and_embeddings(words: Parts, embeddings: Parts) -> Scored:
    """Return a regression on the inputs of `on_words` and `on_embeddings` side by side."""
    vectorizer = _words().fit(words.inputs["train"])
    normalizer = Normalizer()

    def beside(name: str, texts: Input) -> csr_matrix:
        embedded = EMBEDDINGS_WEIGH * normalizer.transform(embeddings.inputs[name])
        return csr_matrix(hstack([vectorizer.transform(texts), embedded]))

    joined = {name: beside(name, texts) for name, texts in words.inputs.items()}
    candidates = [LogisticRegression(C=c, max_iter=1000) for c in FOR_WORDS]
    return _scored("regression on words and sentence embeddings", candidates, words._replace(inputs=joined))


def on_embeddings(parts: Parts) -> Scored:
    """Return a regression on embeddings (N, F) of unit length."""

    def pipeline(inverse_penalty: float) -> Pipeline:
        return make_pipeline(Normalizer(), LogisticRegression(C=inverse_penalty, max_iter=1000))

    return _scored("regression on sentence embeddings", [pipeline(c) for c in FOR_EMBEDDINGS], parts)


def _scored(method: str, pipelines: Sequence[Classifier], parts: Parts) -> Scored:
    began = time.perf_counter()
    fitted = [pipeline.fit(parts.inputs["train"], parts.train.numpy()) for pipeline in pipelines]
    return best_of(method, [(one, parts.inputs) for one in fitted], parts.validation, began)


def best_of(method: str, candidates: Sequence[tuple[Classifier, Inputs]], labels: Tensor, began: float) -> Scored:
    """Return what the candidate with the lowest NLL on validation rows says, recalibrated on them.

    Args:
        method: name of the method.
        candidates: fitted classifiers, each with the inputs of every part as it reads them.
        labels: (V,) labels of the validation rows.
        began: when training began, by `time.perf_counter`.
    """

    def log_probs(classifier: Classifier, of: Input) -> Tensor:
        return torch.from_numpy(classifier.predict_proba(of)).float().clamp_min(LEAST).log()[None]

    def loss(candidate: tuple[Classifier, Inputs]) -> float:
        return nll(log_probs(candidate[0], candidate[1]["validation"])[0].exp(), labels)

    best, inputs = min(candidates, key=loss)
    ones = torch.ones(len(labels))  # fixed labels have no lengths
    recalibration = fit_recalibration(log_probs(best, inputs["validation"]), labels, ones, powers=(0.0, 0.0))
    seconds = time.perf_counter() - began
    found = {name: log_probs(best, of) for name, of in inputs.items() if name not in ("train", "validation")}
    return Scored(method, found["test"], found.get("foreign"), recalibration, seconds, proof=found.get("proof"))
