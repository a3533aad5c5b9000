"""N-grams of a text: words, pairs of neighbouring words, and n-grams of characters, as hashes that need no vocabulary.

Words are those of scikit-learn's analyzer `word`; n-grams of characters lie within what spaces enclose and include the
spaces, as with its analyzer `char_wb`. Hashes are CRC-32, so that a text has the same n-grams on every machine.
"""

import re
import zlib
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

__all__ = ["MOST_PER_TOKEN", "grams_of"]

ORDERS = (2, 3, 4, 5)
# Longest part of a text between two spaces that is counted, in characters.
MOST_CHARACTERS = 100
# Characters of a text that are counted, for each token of its prompt. An encoder's tokenizer leaves out control and
# combining characters, and a pass is bounded in tokens: without this limit it could hold megabytes of them.
MOST_PER_TOKEN = 64
_WORD = re.compile(r"\w\w+")


def grams_of(text: str) -> Tensor:
    """Return (2, n) int32: the different n-grams of a text in rising order, and how often each occurs.

    The lowest bit of an n-gram tells its kind: 1 for words and pairs of words, 0 for characters. The other bits are
    those of its hash.
    """
    lower = text.lower()
    words = _WORD.findall(lower)
    found = [_hashes(_characters(lower), 0), _hashes([*words, *map(" ".join, pairwise(words))], 1)]
    grams, counts = np.unique(np.concatenate(found), return_counts=True)
    return torch.from_numpy(np.stack([grams, counts.astype("i4")]))


def _hashes(grams: list[str], kind: int) -> "np.typing.NDArray[np.int32]":
    crc = np.array([zlib.crc32(gram.encode()) for gram in grams], dtype=np.uint32)
    return ((crc & ~np.uint32(1)) | np.uint32(kind)).view(np.int32)


def _characters(lower: str) -> list[str]:
    parts = [f" {part[:MOST_CHARACTERS]} " for part in lower.split()]
    return [part[k : k + n] for part in parts for n in ORDERS for k in range(len(part) - n + 1)]
