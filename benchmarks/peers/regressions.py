"""The cheapest classifiers for fixed labels: logistic regressions on words, on states or on embeddings, and products.

All are scikit-learn's. Of a few penalties the one with the lowest NLL on validation rows is kept.
"""

import time
from collections.abc import Mapping, Sequence
from itertools import product
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, hstack
from scipy.special import softmax
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import FeatureUnion, Pipeline, make_pipeline, make_union
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor

from benchmarks.peers.figures import Scored
from blora.decision.metrics import nll
from blora.decision.temperature import fit_recalibration

__all__ = ["Parts", "best_of", "multiplied", "on_embeddings", "on_states", "on_words", "on_words_and_embeddings"]


class _Product(NamedTuple):
    """A product of probabilities, each to a power.

    Attributes:
        exponents: the power of each of E factors.
    """

    exponents: tuple[float, ...]

    def predict_proba(self, log_probs: NDArray[np.float32]) -> NDArray[np.float32]:
        """Return probabilities (N, C) of the log-probabilities (E, N, C) of the factors."""
        found: NDArray[np.float32] = softmax(np.einsum("e,enc->nc", np.asarray(self.exponents, "f"), log_probs), 1)
        return found


# Texts, states or counts (N, F), or log-probabilities (E, N, C), of one part, and of all parts by name.
Input = Sequence[str] | NDArray[np.float32] | csr_matrix
Inputs = Mapping[str, Input]
Regression = Pipeline | LogisticRegression

# Candidates for C, the inverse of the penalty.
FOR_WORDS = (3, 10, 30, 100)
FOR_STATES = (0.001, 0.003, 0.01, 0.03)
FOR_EMBEDDINGS = (1, 3, 10, 30, 100)
# Length of an embedding beside words and characters, each of length 1.
EMBEDDINGS_WEIGH = 2.0
# Candidates for the exponent of each factor of a product.
EXPONENTS = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.9, 1.05, 1.2)
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
    return _scored("TF-IDF regression", _for_words(), parts)


def _for_words() -> list[Pipeline]:
    return [make_pipeline(_words(), LogisticRegression(C=c, max_iter=1000)) for c in FOR_WORDS]


def _words() -> FeatureUnion:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_union(words, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))


def on_states(parts: Parts) -> Scored:
    """Return a regression on standardised states (N, F); its seconds do without the reading of the states."""
    return _scored("regression on frozen states", _for_states(), parts)


def _for_states() -> list[Pipeline]:
    return [make_pipeline(StandardScaler(), LogisticRegression(C=c, max_iter=1000)) for c in FOR_STATES]


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


def multiplied(method: str, words: Parts, *states: Parts) -> Scored:
    """Return the product of a regression on words and one or more on states, each to the best of some powers.

    Args:
        method: name of the method.
        words: as for `on_words`.
        states: as for `on_states`.
    """
    began = time.perf_counter()
    factors = [(_best(_for_words(), words), words), *((_best(_for_states(), parts), parts) for parts in states)]
    found: Inputs = {
        name: np.stack([_log_probs(factor, parts.inputs[name]).numpy()[0] for factor, parts in factors])
        for name in words.inputs
        if name != "train"
    }
    candidates = [(_Product(exponents), found) for exponents in product(EXPONENTS, repeat=len(factors))]
    return best_of(method, candidates, words.validation, began)


def _scored(method: str, pipelines: Sequence[Regression], parts: Parts) -> Scored:
    began = time.perf_counter()
    return best_of(method, [(_best(pipelines, parts), parts.inputs)], parts.validation, began)


def _best(pipelines: Sequence[Regression], parts: Parts) -> Regression:
    """Return the fitted classifier with the lowest NLL on the validation rows."""
    fitted = [pipeline.fit(parts.inputs["train"], parts.train.numpy()) for pipeline in pipelines]
    return min(fitted, key=lambda one: _loss(one, parts.inputs, parts.validation))


def best_of(
    method: str, candidates: Sequence[tuple[Regression | _Product, Inputs]], labels: Tensor, began: float
) -> Scored:
    """Return what the candidate with the lowest NLL on validation rows says, recalibrated on them.

    Args:
        method: name of the method.
        candidates: fitted classifiers, each with the inputs of every part as it reads them.
        labels: (V,) labels of the validation rows.
        began: when training began, by `time.perf_counter`.
    """
    best, inputs = min(candidates, key=lambda one: _loss(one[0], one[1], labels))
    ones = torch.ones(len(labels))  # fixed labels have no lengths
    recalibration = fit_recalibration(_log_probs(best, inputs["validation"]), labels, ones, powers=(0.0, 0.0))
    seconds = time.perf_counter() - began
    found = {name: _log_probs(best, of) for name, of in inputs.items() if name not in ("train", "validation")}
    return Scored(method, found["test"], found.get("foreign"), recalibration, seconds, proof=found.get("proof"))


def _log_probs(classifier: Regression | _Product, of: Input) -> Tensor:
    return torch.from_numpy(classifier.predict_proba(of)).float().clamp_min(LEAST).log()[None]


def _loss(classifier: Regression | _Product, inputs: Inputs, labels: Tensor) -> float:
    return nll(_log_probs(classifier, inputs["validation"])[0].exp(), labels)
