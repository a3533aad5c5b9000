"""What became of answers: outcomes against the promised risk, and live uncertainty against that of the calibration.

Of a prediction nothing is kept but whose it was, what was promised, and a salted hash of its leading choice.

The alarm assumes that an outcome is reported whether or not the answer was wrong (see `blora.decision.promise`). It
rests on the outcomes that were asked for, which are those of all answers or of a random sample; outcomes of other
answers are counted and do not touch it. How many of the requested outcomes are missing can be seen in the metrics.
"""

import hashlib
import secrets

from blora.decision.drift import DriftWindow
from blora.decision.promise import Promise
from blora.server.errors import FeedbackConflictError, UnknownPredictionError
from blora.server.ledgers.protocol import Contents, Entry, Ledger
from blora.server.metrics import Metrics
from blora.server.registry import AdapterHandle, Registry

__all__ = ["Feedback"]


class Feedback:
    """The predictions of late, and what their outcomes say of each adapter.

    Args:
        metrics: that show it.
        registry: whose adapters are watched; what others have said before is of no interest any more.
        ledger: where predictions wait for their outcomes.
        rate: the share of predictions whose outcome is asked for.
    """

    def __init__(self, metrics: Metrics, registry: Registry, ledger: Ledger, rate: float = 1.0) -> None:
        self._metrics = metrics
        self._registry = registry
        self._ledger = ledger
        self._rate = rate
        self._promises: dict[tuple[Contents, float], Promise] = {}
        self._windows: dict[Contents, DriftWindow] = {}

    def requested(self, prediction_id: str) -> bool:
        """Return whether the outcome of a prediction is asked for.

        A hash of the id decides, so that all replicas agree and the answer has no part in it.
        """
        digest = hashlib.blake2b(prediction_id.encode(), digest_size=8).digest()
        return int.from_bytes(digest) < self._rate * 2**64

    def predicted(
        self,
        handle: AdapterHandle,
        prediction_id: str,
        leader: str,
        *,
        target_risk: float | None,
        predictive_entropy: float | None,
    ) -> None:
        """A prediction went out.

        Args:
            handle: the adapter.
            prediction_id: by which its outcome will be told.
            leader: its leading choice.
            target_risk: the risk that was promised of the answer, None where there was no answer or no promise.
            predictive_entropy: in nats, None where the question is not like those of the calibration.
        """
        if self._registry.get(handle.name) is not handle:
            return
        adapter, salt = Contents(handle.name, handle.digest), secrets.token_bytes(16)
        requested = self.requested(prediction_id)
        self._ledger.remember(prediction_id, Entry(adapter, salt, _hash(leader, salt), target_risk, requested))
        if target_risk is not None:
            self._metrics.promised(handle.name, target_risk, requested=requested)
        if handle.calibration is not None and predictive_entropy is not None:
            window = self._windows.setdefault(adapter, DriftWindow(handle.calibration.entropy))
            window.add(predictive_entropy)
            if window.due and (index := window.index()) is not None:
                self._metrics.drifted(handle.name, index)

    async def told(self, prediction_id: str, label: str) -> bool:
        """Whether the leading choice was right; the same outcome again changes nothing.

        Raises:
            UnknownPredictionError: if the prediction is none of ours, too long ago, or of an adapter that has gone.
            FeedbackConflictError: if its outcome was told before, and is another.
            FeedbackUnavailableError: if the ledger is out of reach.
        """
        entry = await self._ledger.find(prediction_id)
        if entry is None or not self._served(entry.adapter):
            raise UnknownPredictionError(
                "got a prediction that is not known here, expected one of this server's, not too old, of an adapter "
                "that it still serves: send feedback to the replica that answered, or give all replicas one store",
                param="prediction_id",
            )
        hashed = _hash(label, entry.salt)
        first, tally = await self._ledger.settle(prediction_id, entry, hashed)
        if first != hashed:
            raise FeedbackConflictError(
                "got another label for a prediction than before, expected the same: the first one counts",
                param="label",
            )
        correct = hashed == entry.leader
        # The adapter may have been replaced in the meantime.
        if tally is not None and entry.target_risk is not None and self._served(entry.adapter):
            name, target_risk = entry.adapter.name, entry.target_risk
            self._metrics.outcome(name, target_risk, correct=correct, requested=entry.requested)
            if entry.requested:
                promise = self._promises.setdefault((entry.adapter, target_risk), Promise(target_risk))
                promise.observe(tally.n_outcomes, tally.n_wrong)
                self._metrics.held_against(name, promise)
        return correct

    def forget(self, handle: AdapterHandle) -> None:
        """An adapter was unloaded: its predictions wait for nothing any more."""
        adapter = Contents(handle.name, handle.digest)
        self._ledger.forget(adapter)
        self._windows.pop(adapter, None)
        for key in [key for key in self._promises if key[0] == adapter]:
            del self._promises[key]

    def _served(self, adapter: Contents) -> bool:
        handle = self._registry.get(adapter.name)
        return handle is not None and handle.digest == adapter.digest


def _hash(text: str, salt: bytes) -> bytes:
    return hashlib.blake2b(text.strip().encode(), key=salt, digest_size=16).digest()
