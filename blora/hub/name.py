"""Names of adapters on the Hugging Face hub: hf://owner/name@revision#sha256:digest, the last two parts optional."""

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path

from blora.errors import ConfigError

__all__ = ["HubName", "branch", "place_of", "repository"]

SCHEME = "hf://"
# The hub allows neither "--" nor "..", nor a dash or dot at the ends.
_PART = r"[A-Za-z0-9_]+(?:[.-][A-Za-z0-9_]+)*"
_REPOSITORY = re.compile(f"{_PART}/{_PART}")
_REVISION, _DIGEST = r"[^@#\s,\ud800-\udfff]+", "sha256:[0-9a-f]{64}"  # no half of a surrogate pair
_NAME = re.compile(f"{SCHEME}(?P<repo>{_PART}/{_PART})(?:@(?P<revision>{_REVISION}))?(?:#(?P<digest>{_DIGEST}))?")
_COMMIT = re.compile("[0-9a-f]{40}")


@dataclass(frozen=True, slots=True)
class HubName:
    """Name of an adapter on the hub.

    Attributes:
        repo: repository, owner/name.
        revision: branch, tag or commit.
        digest: the digest that the adapter must have, sha256:<hex>; None for any.
    """

    repo: str
    revision: str = "main"
    digest: str | None = None

    @classmethod
    def parse(cls, text: str) -> "HubName":
        """Return the name in a text that begins with hf://.

        >>> HubName.parse("hf://acme/tickets@v2")
        HubName(repo='acme/tickets', revision='v2', digest=None)

        Raises:
            ConfigError: if the text is not a name.
        """
        found = _NAME.fullmatch(text)
        if found is None:
            raise ConfigError(
                f"got adapter {text!r}, expected hf://owner/name, hf://owner/name@revision or "
                "hf://owner/name@revision#sha256:..., with the 64 digits of the adapter's digest"
            )
        return cls(found["repo"], found["revision"] or "main", found["digest"])

    @property
    def name(self) -> str:
        """The repository's name without its owner, by which the adapter is served."""
        return self.repo.partition("/")[2]

    @property
    def is_commit(self) -> bool:
        """Return whether the revision is a commit, whose contents cannot change."""
        return _COMMIT.fullmatch(self.revision) is not None

    def __str__(self) -> str:
        return f"{SCHEME}{self.repo}@{self.revision}" + (f"#{self.digest}" if self.digest else "")


def place_of(text: str | PathLike[str]) -> Path | HubName:
    """Return a text as a name on the hub if it begins with hf://, otherwise as a path.

    Raises:
        ConfigError: if a name on the hub is malformed.
    """
    return HubName.parse(text) if isinstance(text, str) and text.startswith(SCHEME) else Path(text)


def repository(text: str) -> str:
    """Return a text that names a repository, owner/name.

    Raises:
        ConfigError: if it does not.
    """
    if not _REPOSITORY.fullmatch(text):
        raise ConfigError(f"got repository {text!r}, expected owner/name")
    return text


def branch(text: str) -> str:
    """Return a text that names a branch, as in a name on the hub.

    Raises:
        ConfigError: if it does not.
    """
    if not re.fullmatch(_REVISION, text):
        raise ConfigError(f"got revision {text!r}, expected a branch's name, without white space, @, # and comma")
    return text
