"""The rule for names."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.errors import ConfigError
from blora.server.names import check_name, name_from


@pytest.mark.parametrize("name", ["", "-a", ".a", "a b", "a/b", "ä", "a\n", "a" * 65])
def test_what_is_no_name_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="got key name .*, expected up to 64 letters"):
        check_name("key", name)


@given(st.text())
def test_what_is_made_of_a_text_is_a_name_or_nothing(text: str) -> None:
    name = name_from(text)
    if name:
        check_name("adapter", name)


def test_a_name_stays_as_it_is() -> None:
    assert name_from("triage-1.b_2") == "triage-1.b_2"
    assert name_from("/my adapters/triage (2)") == "my-adapters-triage-2"
