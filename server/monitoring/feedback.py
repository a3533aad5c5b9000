"""What became of answers: outcomes against the promised risk, and live uncertainty against that of the calibration.

Of a prediction nothing is kept but which adapter made it, which key asked, what was promised, and salted hashes of its
choices.

The alarm assumes that an outcome is reported whether or not the answer was wrong (see `blora.decision.promise`). It
rests on the outcomes that were asked for, which are those of all answers or of a random sample; outcomes of other
answers are counted and do not touch it. How many of the requested outcomes are missing can be seen in the metrics.

The key that asked may tell, or an admin's, and only a choice that was offered. A later outcome takes the place of an
earlier one. Counters of Prometheus cannot fall, so corrections have one of their own; everything else is computed from
the outcomes as they are now.
"""

import hashlib
import secrets
from collections.abc import Callable, Sequence

from blora.decision.drift import DriftWindow
from blora.decision.promise import Promise
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import InvalidRequestError, UnknownPredictionError
from blora.server.keys import Key
from blora.server.monitoring.ledgers.protocol import Contents, Entry, Ledger, hashes
from blora.server.monitoring.metrics import Metrics

__all__ = ["Feedback"]


class Feedback:
    """The predictions of late, and what their outcomes say of each adapter.

    Args:
        metrics: that show it.
        served: gives the adapter of a name; what is reported of any other is of no interest any more.
        ledger: where predictions wait for their outcomes.
        rate: the share of predictions whose outcome is asked for.
    """

    def __init__(
        self, metrics: Metrics, served: Callable[[str], AdapterHandle | None], ledger: Ledger, rate: float = 1.0
    ) -> None:
        self._metrics = metrics
        self._handle_of = served
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
        choices: Sequence[str],
        *,
        leader: int,
        client: str | None,
        target_risk: float | None,
        predictive_entropy: float | None,
    ) -> None:
        """A prediction went out.

        Args:
            handle: the adapter.
            prediction_id: by which its outcome will be told.
            choices: that were offered.
            leader: position of its leading choice.
            client: name of the key that asked, None where none was needed.
            target_risk: the risk that was promised of the answer, None where there was no answer or no promise.
            predictive_entropy: in nats, None where the question is not like those of the calibration.
        """
        if self._handle_of(handle.name) is not handle:
            return
        adapter, salt = _contents(handle), secrets.token_bytes(16)
        requested = self.requested(prediction_id)
        entry = Entry(adapter, client, salt, hashes(choices, salt), leader, target_risk, requested)
        self._ledger.remember(prediction_id, entry)
        if target_risk is not None:
            self._metrics.promised(handle.name, target_risk, requested=requested)
        if handle.calibration is not None and predictive_entropy is not None:
            window = self._windows.setdefault(adapter, DriftWindow(handle.calibration.entropy))
            window.add(predictive_entropy)
            if window.due and (index := window.index()) is not None:
                self._metrics.drifted(handle.name, index)

    async def told(self, prediction_id: str, label: str, by: Key | None) -> bool:
        """Return whether the leading choice was right; the same outcome again changes nothing.

        Args:
            prediction_id: of the answer.
            label: the choice that was right, in the place of any that was told before.
            by: the key that tells, None where none is needed.

        Raises:
            UnknownPredictionError: if the prediction is none of ours, too long ago, of an adapter that has gone, or
                was asked with another key and this one is no admin's.
            InvalidRequestError: if the label is none of the choices that were offered.
            FeedbackUnavailableError: if the ledger is out of reach.
        """
        entry = await self._ledger.find(prediction_id)
        if entry is None or not self._served(entry.adapter) or not _may_tell(by, entry):
            raise UnknownPredictionError(
                "No prediction of that id is known here. It may be of another replica, too old, of an adapter that is "
                "no longer loaded, or asked with another key: send feedback to the replica that answered, with the "
                "key that asked, or give all replicas one store with --feedback-redis.",
                param="prediction_id",
            )
        position = entry.position(label)
        if position is None:
            raise InvalidRequestError(
                "This label is none of the choices that the prediction offered: send one of them, spelt the same.",
                code="label_not_offered",
                param="label",
            )
        before, tally = await self._ledger.settle(prediction_id, entry, position)
        correct = position == entry.leader
        # The adapter may have been replaced in the meantime.
        if tally is not None and entry.target_risk is not None and self._served(entry.adapter):
            name, target_risk = entry.adapter.name, entry.target_risk
            if before is None:
                self._metrics.outcome(name, target_risk, correct=correct, requested=entry.requested)
            elif (before == entry.leader) != correct:
                self._metrics.corrected(name, target_risk, correct=correct, requested=entry.requested)
            if entry.requested:
                promise = self._promises.setdefault((entry.adapter, target_risk), Promise(target_risk))
                promise.observe(*tally)
                self._metrics.held_against(name, promise)
        return correct

    def forget(self, handle: AdapterHandle) -> None:
        """An adapter was unloaded: its predictions wait for nothing any more."""
        adapter = _contents(handle)
        self._ledger.forget(adapter)
        self._windows.pop(adapter, None)
        for key in [key for key in self._promises if key[0] == adapter]:
            del self._promises[key]

    def _served(self, adapter: Contents) -> bool:
        handle = self._handle_of(adapter.name)
        return handle is not None and _contents(handle) == adapter


def _contents(handle: AdapterHandle) -> Contents:
    return Contents(handle.name, handle.digest, handle.calibration_digest)


def _may_tell(by: Key | None, entry: Entry) -> bool:
    """Return whether it was asked with this key, or this is an admin's."""
    return entry.client == (by.name if by is not None else None) or (by is not None and by.scope == "admin")
