"""Recently asked texts: answers to questions about one text are not independent, so that a test counts one of them."""

from collections import OrderedDict

__all__ = ["RecentTexts", "text_key"]

# Most texts that are remembered; they take about 0.5 MB.
_MOST = 4096


def text_key(text: str) -> int:
    """Return a number that is equal for equal texts; white space counts as in `Example.text` of the training.

    Python salts the hash in each process, so that the number says nothing about the text elsewhere.
    """
    return hash(" ".join(text.split()))


class RecentTexts:
    """The texts that were asked about most recently, at most 4,096 of them."""

    def __init__(self) -> None:
        self._keys: OrderedDict[int, None] = OrderedDict()

    def add(self, key: int) -> bool:
        """Remember a text as the most recent one, and return whether it is new.

        Args:
            key: the text's number, see `text_key`.
        """
        new = key not in self._keys
        self._keys[key] = None
        self._keys.move_to_end(key)
        if len(self._keys) > _MOST:
            self._keys.popitem(last=False)
        return new
