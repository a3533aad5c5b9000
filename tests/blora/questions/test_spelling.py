"""The form of a text that its spellings share."""

import sys
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.questions.spelling import _has_many_marks, plain, seen

# White space, zero-width characters, and letters with marks that Unicode composes, decomposes or reorders.
NASTY = "ab \t\n\x1c\x85\u00a0\u2003\u2028\u3000\u00ad\u200b\u200c\u200d\u200e\u200f\u2060\ufeff\u0301\u0302\u0323\u00e9\u1ed1\u0958\u1100\u1161"


@given(st.text(NASTY) | st.text() | st.builds(str.__mul__, st.text(NASTY, max_size=3), st.integers(25, 40)))
def test_the_form_of_a_form_is_itself(text: str) -> None:
    assert seen(seen(text)) == seen(text)
    assert plain(plain(text)) == plain(text)


@pytest.mark.parametrize(
    "end", ["\u200d\u00a0", "\u200e\u2003", "\u00a0\u200d\u00a0", "\u3000\u200b\u2028", "\x1c\u200f\x85"]
)
def test_white_space_and_zero_width_characters_at_the_ends_do_not_count(end: str) -> None:
    assert seen(end + "a\u00a0bug" + end[::-1]) == "a\u00a0bug"


@pytest.mark.parametrize(
    "ignored", ["\u00ad", "\u200b", "\u200c", "\u200d", "\u200e", "\u202a", "\u2061", "\u2066", "\ufe0f", "\U000e0061"]
)
def test_characters_that_may_be_ignored_do_not_make_another_text(ignored: str) -> None:
    assert plain(f"I was char{ignored}ged \u2764{ignored}") == "I was charged \u2764"
    assert plain(f"cafe{ignored}\u0301") == "caf\u00e9"


def test_many_marks_on_a_letter_are_found_by_the_quick_look_too() -> None:
    marks = [mark for mark in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(mark)]
    for start in range(len(marks) - 31):
        assert _has_many_marks("a" + "".join(marks[start : start + 31]))
    assert not _has_many_marks("a" + "".join(marks[:30]))
    assert not _has_many_marks("\u2026" * 40)


def test_every_white_space_is_stripped() -> None:
    spaces = "".join(filter(str.isspace, map(chr, range(sys.maxunicode + 1))))
    assert seen(f"\u200d{spaces}\u200da{spaces}\u200d") == "a"
