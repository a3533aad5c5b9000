"""What waits for an outcome, and what a place for it has to do."""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

__all__ = ["Contents", "Entry", "Ledger", "Tally"]


class Contents(NamedTuple):
    """An adapter, by name and digest."""

    name: str
    digest: str


@dataclass(frozen=True, slots=True)
class Entry:
    """One prediction, waiting for its outcome.

    Attributes:
        adapter: that made it.
        salt: of its hashes.
        leader: salted hash of its leading choice.
        target_risk: what was promised of it; None where it was withheld, or nothing was proved.
        requested: whether its outcome was asked for.
    """

    adapter: Contents
    salt: bytes
    leader: bytes
    target_risk: float | None
    requested: bool = True


class Tally(NamedTuple):
    """Outcomes of answers with one promise: those that were asked for, or those that were not."""

    n_outcomes: int
    n_wrong: int


class Ledger(Protocol):
    """Predictions of late, and counts of their outcomes. Bounded: old predictions are forgotten."""

    def remember(self, prediction_id: str, entry: Entry) -> None:
        """Keeps a prediction; whoever asked it is not kept waiting."""

    async def find(self, prediction_id: str) -> Entry | None:
        """A prediction that is kept.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be read.
        """

    async def settle(self, prediction_id: str, entry: Entry, label: bytes) -> tuple[bytes, Tally | None]:
        """Writes an outcome down and counts it, both or neither.

        Args:
            prediction_id: whose outcome.
            entry: what is kept of it.
            label: salted hash of the outcome.

        Returns:
            The label that counts, which is the first; and the tally that holds this outcome, if this label was the
            first and something was promised.

        Raises:
            FeedbackUnavailableError: if the ledger cannot be written to.
        """

    def forget(self, adapter: Contents) -> None:
        """The adapter was unloaded here."""

    async def close(self) -> None:
        """Writes what is still to be written."""
