"""A ledger in memory, lost with the process and not shared with other replicas."""

from collections import OrderedDict
from collections.abc import Callable

from blora.decision.drift import Seen
from blora.server.monitoring.ledgers.protocol import Contents, Counted, Entry, Settled, Tally

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """Ledger in memory.

    Args:
        capacity: most waiting predictions; the oldest are forgotten first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: OrderedDict[str, Entry] = OrderedDict()
        self._labels: dict[str, int] = {}
        self._tallies: dict[tuple[Contents, float], Tally] = {}
        self._noticed: dict[Contents, int] = {}

    def remember(
        self, prediction_id: str, entry: Entry, done: Callable[[Entry | None], None], text: bytes | None
    ) -> None:
        """Implement Ledger."""
        self._waiting[prediction_id] = entry
        done(entry)
        while len(self._waiting) > self._capacity:
            self._drop(next(iter(self._waiting)))

    async def find(self, prediction_id: str) -> Entry | None:
        """Implement Ledger."""
        return self._waiting.get(prediction_id)

    async def settle(self, prediction_id: str, entry: Entry, label: int) -> Settled:
        """Implement Ledger."""
        before = self._labels.get(prediction_id)
        self._labels[prediction_id] = label
        if entry.target_risk is None or not entry.requested:
            return Settled(before, None)
        key = entry.adapter, entry.target_risk
        n_outcomes, n_wrong, n_cleared, rejected_at = self._tallies.get(key, Tally(0, 0, 0, -1))
        wrong, was_wrong = label != entry.leader, before not in (None, entry.leader)
        tally = Tally(
            n_outcomes + (before is None),
            n_wrong + wrong - was_wrong,
            n_cleared + (was_wrong and not wrong),
            rejected_at,
        )
        self._tallies[key] = tally
        return Settled(before, tally)

    async def tally(self, adapter: Contents, target_risk: float) -> Tally | None:
        """Implement Ledger."""
        return self._tallies.get((adapter, target_risk))

    async def reject(self, adapter: Contents, target_risk: float, n_cleared: int) -> None:
        """Implement Ledger."""
        key = adapter, target_risk
        tally = self._tallies[key]
        self._tallies[key] = tally._replace(rejected_at=max(tally.rejected_at, n_cleared))

    async def count(self, adapter: Contents, counter: str, own: Seen) -> Counted:
        """Implement Ledger."""
        return Counted({counter: own}, self._noticed.get(adapter))

    async def notice(self, adapter: Contents, at: int) -> int:
        """Implement Ledger."""
        earliest = self._noticed[adapter] = min(at, self._noticed.get(adapter, at))
        return earliest

    def forget(self, adapter: Contents) -> None:
        """Implement Ledger."""
        for prediction_id in [one for one, entry in self._waiting.items() if entry.adapter == adapter]:
            self._drop(prediction_id)
        for key in [key for key in self._tallies if key[0] == adapter]:
            del self._tallies[key]
        self._noticed.pop(adapter, None)

    async def close(self) -> None:
        """Implement Ledger."""

    def _drop(self, prediction_id: str) -> None:
        del self._waiting[prediction_id]
        self._labels.pop(prediction_id, None)
