"""Counts of a text's character n-grams, hashed into a fixed number of buckets (the hashing trick).

N-grams lie within words and include the spaces around them, as with scikit-learn's analyzer `char_wb`. Hashes are
CRC-32, so that a text has the same counts on every machine.
"""

import zlib
from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["gram_counts"]

ORDERS = (2, 3, 4, 5)
# Longest part of a word that is counted, in characters.
MOST_CHARACTERS = 100


def gram_counts(texts: Sequence[str], n_buckets: int) -> Tensor:
    """Return (B, n_buckets) signed counts of the texts' n-grams, each on a scale of log(1 + count).

    A bit of the hash gives each n-gram its sign, so that n-grams which share a bucket cancel in expectation.
    """
    if not n_buckets:
        return torch.zeros(len(texts), 0)
    found = torch.zeros(len(texts), n_buckets)
    for row, text in zip(found, texts, strict=True):
        hashes = torch.tensor([zlib.crc32(gram.encode()) for gram in _grams(text)], dtype=torch.long)
        row.index_add_(0, hashes % n_buckets, ((hashes >> 31) * 2 - 1).float())
    return found.sign() * found.abs().log1p()


def _grams(text: str) -> list[str]:
    words = [f" {word[:MOST_CHARACTERS]} " for word in text.lower().split()]
    return [word[k : k + n] for word in words for n in ORDERS for k in range(len(word) - n + 1)]
