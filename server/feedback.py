"""What became of answers: outcomes against the promised risk, and live uncertainty against that of the calibration.

Of a prediction nothing is kept but whose it was, what was promised, and a salted hash of its leading choice.
"""

import hashlib
import secrets
from collections import OrderedDict
from dataclasses import dataclass

from blora.decision.drift import DriftWindow
from blora.decision.promise import Promise
from server.errors import FeedbackConflictError, UnknownPredictionError
from server.metrics import Metrics
from server.registry import AdapterHandle, Registry

__all__ = ["Feedback"]


_Contents = tuple[str, str]


@dataclass(slots=True)
class _Entry:
    """One prediction, waiting for its outcome.

    Attributes:
        adapter: name and digest of the adapter that made it.
        leader: salted hash of its leading choice.
        target_risk: what was promised of it; None where it was withheld, or nothing was proved.
        label: salted hash of the outcome, once there is one.
    """

    adapter: "_Contents"
    leader: bytes
    target_risk: float | None
    label: bytes | None = None


class Feedback:
    """The predictions of late, and what their outcomes say of each adapter.

    Args:
        metrics: that show it.
        registry: whose adapters are watched; what others have said before is of no interest any more.
        capacity: how many predictions wait for an outcome; the oldest are forgotten first.
    """

    def __init__(self, metrics: Metrics, registry: Registry, capacity: int) -> None:
        self._metrics = metrics
        self._registry = registry
        self._capacity = capacity
        self._salt = secrets.token_bytes(16)
        self._waiting: OrderedDict[str, _Entry] = OrderedDict()
        self._promises: dict[tuple[_Contents, float], Promise] = {}
        self._windows: dict[_Contents, DriftWindow] = {}

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
        adapter = handle.name, handle.digest
        self._waiting[prediction_id] = _Entry(adapter, self._hash(leader), target_risk)
        while len(self._waiting) > self._capacity:
            self._waiting.popitem(last=False)
        if handle.calibration is not None and predictive_entropy is not None:
            window = self._windows.setdefault(adapter, DriftWindow(handle.calibration.entropy))
            window.add(predictive_entropy)
            if window.due and (index := window.index()) is not None:
                self._metrics.drifted(handle.name, index)

    def told(self, prediction_id: str, label: str) -> bool:
        """Whether the leading choice was right; the same outcome again changes nothing.

        Raises:
            UnknownPredictionError: if the prediction is none of ours, or too long ago.
            FeedbackConflictError: if its outcome was told before, and is another.
        """
        entry = self._waiting.get(prediction_id)
        if entry is None:
            raise UnknownPredictionError(
                "got a prediction that is not known here, expected one of this server's, not too old: send feedback "
                "to the replica that answered",
                param="prediction_id",
            )
        hashed = self._hash(label)
        correct = hashed == entry.leader
        if entry.label is not None:
            if entry.label != hashed:
                raise FeedbackConflictError(
                    "got another label for a prediction than before, expected the same: the first one counts",
                    param="label",
                )
            return correct
        entry.label = hashed
        if entry.target_risk is not None:
            promise = self._promises.setdefault((entry.adapter, entry.target_risk), Promise(entry.target_risk))
            promise.add(wrong=not correct)
            self._metrics.outcome(entry.adapter[0], promise, correct=correct)
        return correct

    def forget(self, handle: AdapterHandle) -> None:
        """An adapter was unloaded: its predictions wait for nothing any more."""
        adapter = handle.name, handle.digest
        self._windows.pop(adapter, None)
        for key in [key for key in self._promises if key[0] == adapter]:
            del self._promises[key]
        for prediction_id in [one for one, entry in self._waiting.items() if entry.adapter == adapter]:
            del self._waiting[prediction_id]

    def _hash(self, text: str) -> bytes:
        return hashlib.blake2b(text.strip().encode(), key=self._salt, digest_size=16).digest()
