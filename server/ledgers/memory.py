"""A ledger in this process: gone with it, and known to no other replica."""

from collections import Counter, OrderedDict

from blora.server.ledgers.protocol import Contents, Entry, Tally

__all__ = ["MemoryLedger"]


class MemoryLedger:
    """See Ledger.

    Args:
        capacity: how many predictions wait; the oldest are forgotten first.
    """

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._waiting: OrderedDict[str, Entry] = OrderedDict()
        self._labels: dict[str, bytes] = {}
        self._outcomes: Counter[tuple[Contents, float, bool, bool]] = Counter()

    def remember(self, prediction_id: str, entry: Entry) -> None:
        """See Ledger."""
        self._waiting[prediction_id] = entry
        while len(self._waiting) > self._capacity:
            self._drop(next(iter(self._waiting)))

    async def find(self, prediction_id: str) -> Entry | None:
        """See Ledger."""
        return self._waiting.get(prediction_id)

    async def settle(self, prediction_id: str, entry: Entry, label: bytes) -> tuple[bytes, Tally | None]:
        """See Ledger."""
        first = self._labels.get(prediction_id)
        if first is not None:
            return first, None
        self._labels[prediction_id] = label
        if entry.target_risk is None:
            return label, None
        key = entry.adapter, entry.target_risk, entry.requested
        self._outcomes[*key, label != entry.leader] += 1
        n_wrong, n_right = (self._outcomes[*key, wrong] for wrong in (True, False))
        return label, Tally(n_wrong + n_right, n_wrong)

    def forget(self, adapter: Contents) -> None:
        """See Ledger."""
        for prediction_id in [one for one, entry in self._waiting.items() if entry.adapter == adapter]:
            self._drop(prediction_id)
        for key in [key for key in self._outcomes if key[0] == adapter]:
            del self._outcomes[key]

    async def close(self) -> None:
        """See Ledger."""

    def _drop(self, prediction_id: str) -> None:
        del self._waiting[prediction_id]
        self._labels.pop(prediction_id, None)
