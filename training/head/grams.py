"""The n-grams that a head has weights for: those that training texts share, the most frequent of them."""

from collections.abc import Sequence
from hashlib import sha256

import torch
from torch import Tensor

__all__ = ["known_grams"]

# Different texts in which an n-gram occurs that gets weights: what is in one alone tells nothing about others.
LEAST_TEXTS = 2


def known_grams(texts: Sequence[Tensor], most: int) -> tuple[Tensor, Tensor]:
    """Return n-grams (M,) int32 in rising order, and the inverse document frequency (M,) of each.

    Texts with the same n-grams count as one, however many rows have them.

    Args:
        texts: (2, n) int32 for each text: its n-grams in rising order, and how often each occurs.
        most: the largest M; of n-grams in equally many texts, the lower ones are taken.
    """
    different = {sha256(text.numpy().tobytes()).digest(): text[0] for text in texts}.values()
    grams, n_texts = torch.cat([torch.zeros(0, dtype=torch.int32), *different]).unique(return_counts=True)
    shared = n_texts >= LEAST_TEXTS
    grams, n_texts = grams[shared], n_texts[shared]
    kept = n_texts.argsort(descending=True, stable=True)[:most].sort().values
    return grams[kept], ((1 + len(different)) / (1 + n_texts[kept])).log() + 1
