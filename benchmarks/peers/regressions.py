"""The cheapest classifiers for fixed labels: logistic regressions on words, on states or on embeddings, and products.

All are scikit-learn's. Of the penalties the one with the lowest NLL on validation rows, after recalibration on them, is
kept, as for a head; where the weakest or the strongest of a few is best, weaker or stronger ones are tried too.
"""

import time
from collections.abc import Callable, Mapping, Sequence
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
from blora.decision.temperature import Recalibration, fit_recalibration

__all__ = [
    "Parts",
    "best_of",
    "multiplied",
    "on_embeddings",
    "on_states",
    "on_words",
    "on_words_and_embeddings",
    "tuned",
]


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
Loss = Callable[["Regression | _Product", Inputs, Tensor], float]

# Candidates for C, the inverse of the penalty, and how often each end is moved on, by which factor, while it is best.
FOR_WORDS = (3, 10, 30, 100)
FOR_STATES = (0.001, 0.003, 0.01, 0.03)
FOR_EMBEDDINGS = (1, 3, 10, 30, 100)
BEYOND, MOST_BEYOND = 3.0, 4
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
    return _scored("TF-IDF regression", _for_words, FOR_WORDS, parts)


def _for_words(c: float) -> Pipeline:
    return make_pipeline(_words(), _regression(c))


def _words() -> FeatureUnion:
    words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
    return make_union(words, TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True))


def _regression(c: float) -> LogisticRegression:
    return LogisticRegression(C=c, max_iter=1000)


def on_states(parts: Parts) -> Scored:
    """Return a regression on standardised states (N, F); its seconds do without the reading of the states."""
    return _scored("regression on frozen states", _for_states, FOR_STATES, parts)


def _for_states(c: float) -> Pipeline:
    return make_pipeline(StandardScaler(), _regression(c))


def on_words_and_embeddings(words: Parts, embeddings: Parts) -> Scored:
    """Return a regression on the inputs of `on_words` and `on_embeddings` side by side."""
    vectorizer = _words().fit(words.inputs["train"])
    normalizer = Normalizer()

    def beside(name: str, texts: Input) -> csr_matrix:
        embedded = EMBEDDINGS_WEIGH * normalizer.transform(embeddings.inputs[name])
        return csr_matrix(hstack([vectorizer.transform(texts), embedded]))

    joined = {name: beside(name, texts) for name, texts in words.inputs.items()}
    method = "regression on words and sentence embeddings"
    return _scored(method, _regression, FOR_WORDS, words._replace(inputs=joined))


def on_embeddings(parts: Parts) -> Scored:
    """Return a regression on embeddings (N, F) of unit length."""
    method = "regression on sentence embeddings"
    return _scored(method, lambda c: make_pipeline(Normalizer(), _regression(c)), FOR_EMBEDDINGS, parts)


def multiplied(method: str, words: Parts, *states: Parts) -> Scored:
    """Return the product of a regression on words and one or more on states, each to the best of some powers.

    Of each factor there are two, those with the lowest NLL as fitted and recalibrated. Which of them are multiplied and
    to which powers, is decided by the NLL of the product on the validation rows.

    Args:
        method: name of the method.
        words: as for `on_words`.
        states: as for `on_states`.
    """
    began = time.perf_counter()
    factors = []
    for make, penalties, parts in ((_for_words, FOR_WORDS, words), *((_for_states, FOR_STATES, of) for of in states)):
        asked = {name: of for name, of in parts.inputs.items() if name != "train"}
        both = _both(make, penalties, parts)
        factors.append([{name: _log_probs(one, of).numpy()[0] for name, of in asked.items()} for one in both])
    candidates = []
    for chosen in product(*factors):
        found: Inputs = {name: np.stack([factor[name] for factor in chosen]) for name in chosen[0]}
        powers = [_Product(exponents) for exponents in product(EXPONENTS, repeat=len(chosen))]
        losses = [nll(_log_probs(one, found["validation"])[0].exp(), words.validation) for one in powers]
        candidates.append((min(losses), powers[int(np.argmin(losses))], found))
    _, best, found = min(candidates, key=lambda candidate: candidate[0])
    return best_of(method, [(best, found)], words.validation, began)


def _both(make: Callable[[float], Regression], penalties: Sequence[float], parts: Parts) -> list[Regression]:
    """Return the classifiers with the lowest NLL as fitted and recalibrated, which may be one."""
    found = [tuned(make, penalties, parts, loss) for loss in (_raw_loss, _loss)]
    return found[:1] if found[0][-1].C == found[1][-1].C else found


def _scored(method: str, make: Callable[[float], Regression], penalties: Sequence[float], parts: Parts) -> Scored:
    began = time.perf_counter()
    return best_of(method, [(tuned(make, penalties, parts), parts.inputs)], parts.validation, began)


def tuned(
    make: Callable[[float], Regression], penalties: Sequence[float], parts: Parts, loss: Loss | None = None
) -> Regression:
    """Return the fitted classifier with the lowest loss on the validation rows.

    Args:
        make: returns a classifier for a C.
        penalties: values of C, ascending.
        parts: the rows.
        loss: of a classifier on the validation rows; None for the recalibrated NLL.
    """
    loss = loss or _loss
    tried: dict[float, tuple[float, Regression]] = {}

    def best(values: Sequence[float]) -> float:
        for c in values:
            fitted = make(c).fit(parts.inputs["train"], parts.train.numpy())
            tried[c] = loss(fitted, parts.inputs, parts.validation), fitted
        return min(tried, key=lambda c: tried[c][0])

    found = best(penalties)
    for end, factor in ((penalties[0], 1 / BEYOND), (penalties[-1], BEYOND)):
        beyond = [end * factor**k for k in range(1, MOST_BEYOND + 1)]
        while beyond and found == end:
            end = beyond.pop(0)
            found = best([end])
    return tried[found][1]


def best_of(
    method: str, candidates: Sequence[tuple[Regression | _Product, Inputs]], labels: Tensor, began: float
) -> Scored:
    """Return what the candidate with the lowest recalibrated NLL on validation rows says, recalibrated on them.

    Args:
        method: name of the method.
        candidates: fitted classifiers, each with the inputs of every part as it reads them.
        labels: (V,) labels of the validation rows.
        began: when training began, by `time.perf_counter`.
    """
    best, inputs = candidates[0] if len(candidates) == 1 else min(candidates, key=lambda one: _loss(*one, labels))
    recalibration = _recalibration(_log_probs(best, inputs["validation"]), labels)
    seconds = time.perf_counter() - began
    found = {name: _log_probs(best, of) for name, of in inputs.items() if name not in ("train", "validation")}
    return Scored(method, found["test"], found.get("foreign"), recalibration, seconds, proof=found.get("proof"))


def _log_probs(classifier: Regression | _Product, of: Input) -> Tensor:
    return torch.from_numpy(classifier.predict_proba(of)).float().clamp_min(LEAST).log()[None]


def _recalibration(log_probs: Tensor, labels: Tensor) -> Recalibration:
    return fit_recalibration(log_probs, labels, torch.ones(len(labels)), powers=(0.0, 0.0))  # labels have no lengths


def _loss(classifier: Regression | _Product, inputs: Inputs, labels: Tensor) -> float:
    log_probs = _log_probs(classifier, inputs["validation"])
    recalibrated = _recalibration(log_probs, labels).of(log_probs, torch.ones(len(labels)))
    return nll(recalibrated.mean(0), labels)


def _raw_loss(classifier: Regression | _Product, inputs: Inputs, labels: Tensor) -> float:
    return nll(_log_probs(classifier, inputs["validation"])[0].exp(), labels)
