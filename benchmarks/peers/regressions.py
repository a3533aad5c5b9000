"""The two cheapest classifiers: a logistic regression on words, and one on the frozen base model's states."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline, make_union
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from blora.base_model import BaseModel
from blora.decision.metrics import nll
from blora.decision.temperature import fit_temperature, temper

__all__ = ["Fitted", "Part", "mean_states", "on_states", "on_words"]

# Depths of the layers whose states are read, as shares of all layers.
DEPTHS = (1 / 3, 1 / 2, 2 / 3, 5 / 6, 1)
AT_ONCE = 32


class Part(NamedTuple):
    """Texts, and the index of each one's label."""

    texts: Sequence[str]
    labels: Tensor


class Fitted(NamedTuple):
    """A classifier's log-probabilities of test texts, and how they came about.

    Attributes:
        log_probs: (N, C) as fitted.
        temperature: from validation texts.
        inverse_penalty: C, with the lowest NLL on validation texts.
    """

    log_probs: Tensor
    temperature: float
    inverse_penalty: float

    def tempered(self) -> Tensor:
        """Return probabilities (N, C) at the temperature."""
        return temper(self.log_probs, self.temperature)


def on_words(train: Part, validation: Part, test: Part) -> Fitted:
    """Return a regression on TF-IDF of words, pairs of words and two to five characters."""

    def pipeline(inverse_penalty: float) -> Pipeline:
        words = TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True)
        characters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 5), sublinear_tf=True)
        return make_pipeline(make_union(words, characters), LogisticRegression(C=inverse_penalty, max_iter=1000))

    inputs = [part.texts for part in (train, validation, test)]
    return _fitted([pipeline(c) for c in (3, 10, 30, 100)], inputs, train.labels, validation.labels)


def on_states(base: BaseModel, train: Part, validation: Part, test: Part) -> Fitted:
    """Return a regression on the mean over a text's tokens of the states at five depths of a base model."""

    def pipeline(inverse_penalty: float) -> Pipeline:
        return make_pipeline(StandardScaler(), LogisticRegression(C=inverse_penalty, max_iter=1000))

    inputs = [mean_states(base, part.texts).numpy() for part in (train, validation, test)]
    return _fitted([pipeline(c) for c in (0.001, 0.003, 0.01, 0.03)], inputs, train.labels, validation.labels)


def _fitted(
    pipelines: Sequence[Pipeline], inputs: Sequence[Sequence[str] | NDArray[np.float32]], train: Tensor, val: Tensor
) -> Fitted:
    texts, validation, test = inputs

    def log_probs(pipeline: Pipeline, of: Sequence[str] | NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(pipeline.predict_log_proba(of)).float()

    for pipeline in pipelines:
        pipeline.fit(texts, train.numpy())
    best = min(pipelines, key=lambda pipeline: nll(log_probs(pipeline, validation).exp(), val))
    temperature = fit_temperature(log_probs(best, validation)[None], val)
    return Fitted(log_probs(best, test), temperature, float(best[-1].C))


@torch.inference_mode()
def mean_states(base: BaseModel, texts: Sequence[str]) -> Tensor:
    """Return the mean state of each text at every depth, (N, depths x D) float32."""
    n_layers = base.model.config.get_text_config().num_hidden_layers
    layers = [round(n_layers * depth) for depth in DEPTHS]
    found = torch.empty(len(texts), 0)
    ids = [torch.tensor(base.tokenizer(text)["input_ids"]) for text in texts]
    order = sorted(range(len(ids)), key=lambda index: len(ids[index]))
    for start in range(0, len(order), AT_ONCE):
        part = order[start : start + AT_ONCE]
        tokens = torch.nn.utils.rnn.pad_sequence([ids[index] for index in part], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(ids[index])) for index in part], batch_first=True)
        states = base.model(
            input_ids=tokens.to(base.device),
            attention_mask=mask.to(base.device),
            output_hidden_states=True,
            use_cache=False,
        ).hidden_states
        read = torch.cat([states[layer].float().cpu() for layer in layers], -1)  # (rows, T, depths x D)
        if not found.shape[1]:
            found = torch.empty(len(texts), read.shape[-1])
        found[part] = (read * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    return found
