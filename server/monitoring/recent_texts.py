"""Recently asked texts: answers to questions about one text are not independent, so that a test counts one of them."""

import hashlib
from collections import OrderedDict
from functools import cached_property

from blora.questions.spelling import plain

__all__ = ["AskedText", "RecentTexts"]

# Most texts that are remembered; they take about 0.5 MB.
_MOST = 4096
# Length of a hash: two of a billion texts have the same one with probability 1.5e-21.
_KEY_BYTES = 16


class AskedText:
    """A text that questions are about.

    Args:
        text: the text.
    """

    def __init__(self, text: str) -> None:
        self._text = text

    @cached_property
    def key(self) -> bytes:
        """A hash that is equal for texts that are equal in `Example.text` of the training, in every process.

        It is computed only when it is needed, because that takes long for a long text.
        """
        return hashlib.blake2b(plain(self._text).encode(), digest_size=_KEY_BYTES).digest()


class RecentTexts:
    """The texts that were asked about most recently, at most 4,096 of them."""

    def __init__(self) -> None:
        self._keys: OrderedDict[bytes, None] = OrderedDict()

    def add(self, key: bytes) -> bool:
        """Remember a text as the most recent one, and return whether it is new.

        Args:
            key: the text's hash, see `AskedText`.
        """
        new = key not in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > _MOST:
            self._keys.popitem(last=False)
        return new
