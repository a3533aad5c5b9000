"""TF-IDF weights of the n-grams of texts, among those that a head knows.

The weight of an n-gram that occurs k times in a text is (1 + log k) times its inverse document frequency. The weights
of words have unit length, and so have those of characters: n-grams of characters are far more, and would otherwise
drown the words.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

__all__ = ["SparseRows", "tf_idf"]


class SparseRows(NamedTuple):
    """A sparse matrix (B, M), row after row.

    Attributes:
        columns: (n,) the column of each value.
        values: (n,).
        begins: (B + 1,) where each row begins, and the end.
    """

    columns: Tensor
    values: Tensor
    begins: Tensor

    def times(self, weight: Tensor) -> Tensor:
        """Return the product (B, O) with a dense matrix (M, O)."""
        return embedding_bag(self.columns, weight, self.begins[:-1], mode="sum", per_sample_weights=self.values)


def tf_idf(texts: Sequence[Tensor], known: Tensor, idf: Tensor) -> SparseRows:
    """Return the weights (B, M) of texts.

    Args:
        texts: (2, n) int32 for each of the B texts: its n-grams in rising order, and how often each occurs.
        known: (M,) int32 the n-grams that have weights, in rising order.
        idf: (M,) their inverse document frequencies.
    """
    device = known.device
    grams, counts = torch.cat([*texts, torch.zeros(2, 0, dtype=torch.int32)], 1).to(device)
    owner = torch.arange(len(texts)).repeat_interleave(torch.tensor([text.shape[1] for text in texts])).to(device)
    columns = torch.searchsorted(known, grams).clamp_max(max(0, len(known) - 1))
    is_known = known[columns] == grams if len(known) else torch.zeros_like(grams, dtype=torch.bool)
    columns, owner = columns[is_known], owner[is_known]
    values = (1 + counts[is_known].log()) * idf[columns]
    block = 2 * owner + known[columns] % 2  # words or characters of one text
    squares = values.new_zeros(2 * len(texts)).index_add(0, block, values.square())
    begins = torch.cat([owner.new_zeros(1), owner.bincount(minlength=len(texts)).cumsum(0)])
    lengths = squares.sqrt().clamp_min(torch.finfo(squares.dtype).tiny)  # squares of tiny frequencies may be zero
    return SparseRows(columns, values / lengths[block], begins)
