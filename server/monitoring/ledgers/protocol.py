"""What waits for an outcome, and what a place for it has to do."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["Contents", "Entry", "Ledger", "Settled", "Tally", "hashes"]

# Enough that a label which was not offered passes for one in 64 that were with probability 4e-18.
_HASH_BYTES = 8


class Contents(NamedTuple):
    """An adapter, by name and by the digests of its weights and of what decides about their answers."""

    name: str
    digest: str
    calibration_digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One prediction, waiting for its outcome.

    Attributes:
        adapter: that made it.
        client: name of the key that asked, None where none was needed.
        salt: of the hashes.
        choices: salted hashes of the choices that were offered, one after the other.
        leader: position of its leading choice.
        target_risk: what was promised of it; None where it was withheld, or nothing was proved.
        requested: whether its outcome was asked for.
    """

    adapter: Contents
    client: str | None
    salt: bytes
    choices: bytes
    leader: int
    target_risk: float | None
    requested: bool

    def position(self, label: str) -> int | None:
        """Return which choice the label is, None if it was not offered."""
        wanted = _hash(label, self.salt)
        starts = range(0, len(self.choices), _HASH_BYTES)
        return next((at // _HASH_BYTES for at in starts if self.choices[at : at + _HASH_BYTES] == wanted), None)


def hashes(choices: Sequence[str], salt: bytes) -> bytes:
    """Return the salted hashes of an entry's choices; white space at their ends does not count."""
    return b"".join(_hash(choice, salt) for choice in choices)


def _hash(text: str, salt: bytes) -> bytes:
    return hashlib.blake2b(text.strip().encode(), key=salt, digest_size=_HASH_BYTES).digest()


class Tally(NamedTuple):
    """Outcomes of answers with one promise: those that were asked for, or those that were not.

    Attributes:
        n_outcomes: answers whose outcome was reported.
        n_wrong: answers that were wrong by their latest outcome.
        n_cleared: how often an answer that had been reported wrong was reported right later.
    """

    n_outcomes: int
    n_wrong: int
    n_cleared: int


class Settled(NamedTuple):
    """What became of an outcome that was written down.

    Attributes:
        before: position of the choice that counted until now, None if there was no outcome yet.
        tally: with this outcome in it; None where nothing was promised.
    """

    before: int | None
    tally: Tally | None


class Ledger(Protocol):
    """Predictions of late, and counts of their outcomes. Bounded: old predictions are forgotten."""

    def remember(self, prediction_id: str, entry: Entry) -> None:
        """Keeps a prediction; whoever asked it is not kept waiting."""

    async def find(self, prediction_id: str) -> Entry | None:
        """A prediction that is kept.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be read.
        """

    async def settle(self, prediction_id: str, entry: Entry, label: int) -> Settled:
        """Writes an outcome down in the place of an earlier one and corrects the counts, both or neither.

        Args:
            prediction_id: whose outcome.
            entry: what is kept of it.
            label: position of the choice that was right.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be written to.
        """

    def forget(self, adapter: Contents) -> None:
        """The adapter was unloaded here."""

    async def close(self) -> None:
        """Writes what is still to be written."""
