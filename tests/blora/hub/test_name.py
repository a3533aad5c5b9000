from pathlib import Path

import pytest

from blora.errors import ConfigError
from blora.hub.name import HubName, place_of, repository

DIGEST = f"sha256:{'0a' * 32}"


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("hf://acme/tickets", HubName("acme/tickets")),
        ("hf://acme/tickets@v1.2", HubName("acme/tickets", "v1.2")),
        ("hf://acme/tickets@refs/pr/1", HubName("acme/tickets", "refs/pr/1")),
        (f"hf://acme/my_tickets-2.b@main#{DIGEST}", HubName("acme/my_tickets-2.b", "main", DIGEST)),
        (f"hf://acme/tickets#{DIGEST}", HubName("acme/tickets", "main", DIGEST)),
    ],
)
def test_a_name_is_read_and_written(text: str, name: HubName) -> None:
    assert HubName.parse(text) == name
    assert HubName.parse(str(name)) == name
    assert place_of(text) == name


@pytest.mark.parametrize(
    "text",
    [
        *("hf://", "hf://tickets", "hf://acme/tickets/deep", "hf://acme/tickets@", "hf://acme/tickets#sha256:12"),
        *("hf://../tickets", "hf://acme/..", "hf://acme/a--b", "hf://acme/.hidden", "hf://acme/tickets@a b"),
        *("hf://acme/tickets@a,b", f"hf://acme/tickets#{DIGEST}@v1", "hf://acme/tickets\n", "hf://acme/tickets@\udcff"),
    ],
)
def test_a_malformed_name_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected hf://owner/name"):
        place_of(text)


def test_everything_else_is_a_path() -> None:
    assert place_of("adapters/hf") == Path("adapters/hf")
    assert place_of(Path("hf:/acme/tickets")) == Path("hf:/acme/tickets")


def test_only_a_whole_commit_is_fixed() -> None:
    assert HubName("acme/tickets", "0123456789" * 4).is_commit
    assert not HubName("acme/tickets", "0123456").is_commit


def test_a_repository_has_an_owner() -> None:
    assert repository("acme/tickets") == "acme/tickets"
    with pytest.raises(ConfigError, match="expected owner/name"):
        repository("tickets")
