"""Forms of a text in which spellings that look the same are equal."""

import re
import unicodedata
from collections.abc import Iterable

__all__ = ["half_pair", "plain", "seen"]

# Zero-width characters that never change how a text looks. Those in _ENDS can, by joining or reordering letters, except
# at the ends of a text.
_NO_WIDTH = "\u00ad\u200b\u2060\ufeff"
# Characters that Unicode lets a renderer ignore: joiners, marks of direction, variation selectors, tags and the like.
_IGNORED = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\U000e0000-\U000e0fff]"
)
_WHITE_SPACE = "".join(filter(str.isspace, map(chr, range(0x3001))))
_ENDS = _WHITE_SPACE + "\u200c\u200d\u200e\u200f"
# Limit for combining marks on one letter, as in the Stream-Safe Text Format of Unicode (UAX #15, section 13).
_MOST_MARKS = 30
# Matches wherever a letter has more marks, and seldom elsewhere: most texts need no look at each character.
_PERHAPS_MARKS = re.compile(rf"[^\w\x00-\x7f]{{{_MOST_MARKS + 1}}}")


def seen(text: str) -> str:
    r"""Return a text in the form used for comparison: Unicode NFC, without zero-width characters and outer space.

    A text in this form is returned unchanged.

    >>> seen("cafe\u0301\u200b ") == "caf\u00e9"
    True
    """
    for character in _NO_WIDTH:  # faster than a translation of each character
        text = text.replace(character, "")
    if not _has_many_marks(text):
        text = unicodedata.normalize("NFC", text)
    return text.strip(_ENDS)


def plain(text: str) -> str:
    r"""Return a text in the form that fingerprints are made of.

    That is `seen` with one space for each white space, and without the characters that Unicode lets a renderer ignore.

    >>> plain("I was\n char\u200dged  twice. ")
    'I was charged twice.'
    """
    return " ".join(seen(_IGNORED.sub("", text)).split())


def half_pair(texts: Iterable[str]) -> str | None:
    """Return an error message for half a surrogate pair, which JSON can contain but no tokenizer can read; or None."""
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            return (
                f"got half of a surrogate pair, {text[exc.start]!r}, at character {exc.start} of {text!r:.80}, "
                "expected whole Unicode characters; correct the text"
            )
    return None


def _has_many_marks(text: str) -> bool:
    """Return whether a letter has more combining marks than in any language; NFC takes quadratic time for these."""
    if text.isascii() or not _PERHAPS_MARKS.search(text):
        return False
    n_marks = 0
    for character in text:
        n_marks = n_marks + 1 if unicodedata.combining(character) else 0
        if n_marks > _MOST_MARKS:
            return True
    return False
