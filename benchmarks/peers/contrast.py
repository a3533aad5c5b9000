"""A regression on states that contrast has drawn together by label, as SetFit does with the states it fine-tunes.

A linear map of the frozen model's standardised states is trained on pairs: rows of one label shall have a larger cosine
than rows of two (supervised contrast: Khosla et al., 2020, arXiv:2004.11362). scikit-learn's logistic regression reads
the result, at the number of epochs and the penalty with the lowest NLL on validation rows. SetFit itself (Tunstall et
al., 2022, arXiv:2209.11055) trains every layer of a sentence encoder.
"""

import time
from collections.abc import Iterator

import torch
from sklearn.linear_model import LogisticRegression
from torch import Tensor, nn
from torch.nn.functional import normalize

from benchmarks.peers.figures import Scored
from benchmarks.peers.regressions import Parts, best_of

__all__ = ["contrast"]

N_OUTPUTS, BATCH_SIZE, RATE, SHARPNESS = 256, 1024, 3e-4, 10.0
# Numbers of epochs that the validation rows choose from.
EPOCHS = (1, 2, 5, 10, 20)
PENALTIES = (0.1, 0.3, 1.0, 3.0, 10.0)


def contrast(parts: Parts) -> Scored:
    """Return the regression on contrasted states (N, F); its seconds do without the reading of the states."""
    began = time.perf_counter()
    torch.manual_seed(0)
    states = {name: torch.as_tensor(of) for name, of in parts.inputs.items()}
    middle, spread = states["train"].mean(0), states["train"].std(0).clamp_min(1e-6)
    states = {name: (of - middle) / spread for name, of in states.items()}
    candidates = []
    for found in _trained(states["train"], parts.train):
        under = {name: normalize(of @ found.T, dim=-1).numpy() for name, of in states.items()}
        regressions = [LogisticRegression(C=c, max_iter=1000) for c in PENALTIES]
        candidates += [(one.fit(under["train"], parts.train.numpy()), under) for one in regressions]
    return best_of("contrast on frozen states", candidates, parts.validation, began)


def _trained(states: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield the map (N_OUTPUTS, F) after each of `EPOCHS`."""
    encoder = nn.Linear(states.shape[1], N_OUTPUTS, bias=False)
    optimizer = torch.optim.Adam(encoder.parameters(), lr=RATE)
    for epoch in range(1, max(EPOCHS) + 1):
        for picked in torch.randperm(len(states)).split(BATCH_SIZE):
            encoded = normalize(encoder(states[picked]), dim=-1)
            itself = torch.eye(len(picked), dtype=torch.bool)
            log_p = (SHARPNESS * encoded @ encoded.T).masked_fill(itself, -torch.inf).log_softmax(-1)
            same = (labels[picked] == labels[picked][:, None]) & ~itself
            others = same.sum(-1)
            loss = -(log_p.masked_fill(~same, 0.0).sum(-1) / others.clamp_min(1))[others > 0].mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch in EPOCHS:
            yield encoder.weight.detach().clone()
