"""Fingerprints of texts: how they are written one after another and found again."""

import pytest

from blora.questions.fingerprints import DIGITS, are_fingerprints, fingerprint, joined, parts


def test_joined_fingerprints_are_found_again_in_order_and_each_once() -> None:
    one, two, three = sorted(map(fingerprint, ("one", "two", "three")))
    assert parts(joined(three + one, "", two, one)) == [one, two, three]
    assert parts("") == []


@pytest.mark.parametrize("value", ["abc", "0" * (DIGITS + 1), "x" * DIGITS, 3, None])
def test_what_is_no_text_of_fingerprints_is_known(value: object) -> None:
    assert not are_fingerprints(value)
