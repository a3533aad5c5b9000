"""The protocol of ledgers, and the entries that they store."""

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

from blora.decision.drift import Seen

__all__ = ["Contents", "Counted", "Entry", "Label", "Ledger", "Settled", "Tally", "hashes", "labels_with_positions"]

# A choice as a client reports it: a text, or the boolean or the level number of a typed question.
Label = str | bool | int

# Length of a hash. A label that was not offered matches one of 255 offered choices with probability 1.4e-17.
_HASH_BYTES = 8


class Contents(NamedTuple):
    """Name of an adapter, and the digests of its weights and of its calibration and policy."""

    name: str
    digest: str
    calibration_digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One prediction, waiting for its outcome.

    Attributes:
        adapter: the adapter that made it.
        client: name of the key that asked; None without keys.
        salt: salt of the hashes.
        choices: concatenated salted hashes of the offered choices.
        labels: further labels of a typed question's choices, which count before the choices themselves: concatenated
            salted hashes, each with the position of its choice in one byte.
        leader: position of the leading choice.
        target_risk: the promised risk; None without an answer or a promise.
        requested: whether its outcome was requested, and counts in the test of the promise.
    """

    adapter: Contents
    client: str | None
    salt: bytes
    choices: bytes
    leader: int
    target_risk: float | None
    requested: bool
    labels: bytes = b""

    def position(self, label: Label | None) -> int | None:
        """Return the position of the label among the choices, or None if it was not offered.

        A label of None stands for none of the choices; its position is that behind the last one.
        """
        if label is None:
            return len(self.choices) // _HASH_BYTES
        wanted = _hash(label, self.salt)
        for at in range(0, len(self.labels), _HASH_BYTES + 1):
            if self.labels[at : at + _HASH_BYTES] == wanted:
                return self.labels[at + _HASH_BYTES]
        starts = range(0, len(self.choices), _HASH_BYTES)
        return next((at // _HASH_BYTES for at in starts if self.choices[at : at + _HASH_BYTES] == wanted), None)


def hashes(choices: Sequence[str], salt: bytes) -> bytes:
    """Return the concatenated salted hashes of choices; white space at their ends does not count."""
    return b"".join(_hash(choice, salt) for choice in choices)


def labels_with_positions(labels: Mapping[Label, int], salt: bytes) -> bytes:
    """Return the concatenated salted hashes of labels, each with the position of its choice, 0 to 255, in one byte."""
    return b"".join(_hash(label, salt) + bytes([position]) for label, position in labels.items())


def _hash(label: Label, salt: bytes) -> bytes:
    text, kind = (label.strip(), b"") if isinstance(label, str) else (json.dumps(label), b"json")
    return hashlib.blake2b(text.encode(), key=salt, person=kind, digest_size=_HASH_BYTES).digest()


class Tally(NamedTuple):
    """Counts of requested outcomes of answers under one promise.

    Attributes:
        n_outcomes: number of answers whose outcome was reported.
        n_wrong: number of answers whose latest outcome says wrong.
        n_cleared: number of corrections from wrong to right.
        rejected_at: value of `n_cleared` when the promise was last called broken; -1 if it never was.
    """

    n_outcomes: int
    n_wrong: int
    n_cleared: int
    rejected_at: int


class Settled(NamedTuple):
    """Result of storing an outcome.

    Attributes:
        before: position of the previously reported outcome; None if there was none.
        tally: the counts including this outcome; None without a promise, or if the outcome was not requested.
    """

    before: int | None
    tally: Tally | None


class Counted(NamedTuple):
    """Counts and time of an adapter's drift, as a ledger holds them.

    Attributes:
        counters: the counts of each counter.
        noticed: Unix time at which a drift was first noticed; None if none was.
    """

    counters: dict[str, Seen]
    noticed: int | None


class Ledger(Protocol):
    """Bounded store of recent predictions, counts of their outcomes, and counts of unfamiliar questions."""

    def remember(
        self, prediction_id: str, entry: Entry, done: Callable[[Entry | None], None], text: bytes | None
    ) -> None:
        """Store a prediction without delaying the answer, and then call `done` with what is stored.

        Args:
            prediction_id: id of the prediction.
            entry: the prediction.
            done: called with the prediction, or with None if it is not stored.
            text: hash of the text and the promise that a requested prediction stands for; None if it is not requested
                under a promise. A ledger that several processes share keeps it: the stored prediction is not requested
                if one of another process stands for the text.
        """

    async def find(self, prediction_id: str) -> Entry | None:
        """Return a stored prediction, or None.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be read.
        """

    async def settle(self, prediction_id: str, entry: Entry, label: int) -> Settled:
        """Store an outcome in place of an earlier one and update the counts, as one transaction.

        Args:
            prediction_id: id of the prediction.
            entry: the stored prediction.
            label: position of the right choice; the one behind the last choice if none is right.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be written to.
        """

    async def tally(self, adapter: Contents, target_risk: float) -> Tally | None:
        """Return the counts of requested outcomes under a promise; None if none was reported.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be read.
        """

    async def reject(self, adapter: Contents, target_risk: float, n_cleared: int) -> None:
        """Store that a promise was called broken after this number of corrections, unless a larger one is stored.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be written to.
        """

    async def count(self, adapter: Contents, counter: str, own: Seen) -> Counted:
        """Store the counts so far of one counter of answers, and return the counts of all counters.

        Storing the same counts again changes nothing.

        Args:
            adapter: the adapter that answered.
            counter: a name that no other counter has.
            own: all answers that it has counted.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be written to.
        """

    async def notice(self, adapter: Contents, at: int) -> int:
        """Store the Unix time at which a drift was noticed unless an earlier one is stored, and return the earlier one.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be written to.
        """

    def forget(self, adapter: Contents) -> None:
        """Drop the predictions and counts of an adapter that this replica unloaded."""

    async def close(self) -> None:
        """Finish pending writes."""
