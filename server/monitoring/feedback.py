"""Monitoring of answers: outcomes against the promised risk, and how familiar the questions are.

Each prediction is kept only as its adapter, the name of the key that asked, the promised risk, and salted hashes of its
choices and of their other labels; a ledger that several processes share keeps hashes of the texts too.

The alarm assumes that outcomes are reported whether or not the answer was wrong (see `blora.decision.promise`). It uses
the requested outcomes only; outcomes of other answers are counted but do not affect it. The metrics show how many
requested outcomes are missing. Answers about one text are not independent, so that under each promise the outcome of
one question about a text counts, of all recent texts or of a random sample of them; where processes share a ledger,
one of all that they were asked. As in a calibration, neither the text nor the question is chosen by its answer: if the
question was withheld, no outcome about the text counts.

An outcome may be reported with the key that asked or an admin's key, and names an offered choice or says that none of
them is right. A later outcome replaces an earlier one. Prometheus counters cannot fall, so corrections have their own
counter; all other numbers are computed from the latest outcomes.
"""

import asyncio
import hashlib
import json
import logging
import secrets
from collections.abc import Callable, Mapping, Sequence

from blora.decision.promise import Promise
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import FeedbackUnavailableError, InvalidRequestError, UnknownPredictionError
from blora.server.keys import Key
from blora.server.monitoring.drift import DriftWatch
from blora.server.monitoring.ledgers.protocol import (
    Contents,
    Entry,
    Label,
    Ledger,
    Tally,
    hashes,
    labels_with_positions,
)
from blora.server.monitoring.logs import ThrottledLogger
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.monitoring.recent_texts import AskedText, RecentTexts

__all__ = ["Feedback"]

logger = logging.getLogger(__name__)

# Seconds between readings of an adapter's counts, and between attempts while the ledger cannot be read.
_LOOK_S, _RETRY_S = 30.0, 5.0
_CLOSE_S = 1.0


class Feedback:
    """Recent predictions, and the evidence of their outcomes about each adapter.

    Args:
        metrics: shows the results.
        served: returns the adapter served under a name; outcomes of other adapters are ignored.
        ledger: the store of predictions that wait for their outcomes, and of counts.
        rate: share of the texts, or of the predictions without a promise, whose outcome may be requested.
    """

    def __init__(
        self, metrics: ServerMetrics, served: Callable[[str], AdapterHandle | None], ledger: Ledger, rate: float = 1.0
    ) -> None:
        self._metrics = metrics
        self._handle_of = served
        self._ledger = ledger
        self._rate = rate
        self._promises: dict[tuple[Contents, float], Promise] = {}
        self._looking: dict[Contents, asyncio.Task[None]] = {}
        self._failures = ThrottledLogger(logger)
        self._promised_texts: dict[tuple[Contents, float], RecentTexts] = {}
        self._drift = DriftWatch(metrics, ledger)

    def watch(self, handle: AdapterHandle) -> None:
        """Show the evidence that the ledger holds about an adapter, from its loading on, once it can be read."""
        if handle.calibration is not None:
            adapter, targets = _contents(handle), [level.target_risk for level in handle.calibration.proved()]
            self._looking[adapter] = asyncio.create_task(self._look(adapter, targets), name="feedback")

    def predicted(
        self,
        handle: AdapterHandle,
        prediction_id: str,
        choices: Sequence[str],
        *,
        text: AskedText,
        leader: int,
        client: str | None,
        target_risk: float | None,
        answered: bool,
        familiarity: float | None,
        labels: Mapping[Label, int],
    ) -> bool:
        """Record a prediction, and return whether its outcome is requested.

        Args:
            handle: the adapter.
            prediction_id: the id under which its outcome will be reported.
            choices: the offered choices.
            text: the text that the question is about.
            leader: position of the leading choice.
            client: name of the key that asked; None without keys.
            target_risk: the risk promised for answers to the question; None without a promise.
            answered: whether the answer was given; the promise does not cover a withheld one.
            familiarity: conformal p-value of the question; None without one, or if the question departs from the
                calibration.
            labels: further labels of the choices, with the position of each label's choice; they count before the
                choices themselves.
        """
        if self._handle_of(handle.name) is not handle:
            return False
        adapter, salt = _contents(handle), secrets.token_bytes(16)
        requested = (
            self._drawn(prediction_id.encode()) if target_risk is None else self._picked(adapter, target_risk, text)
        )
        others, promised = labels_with_positions(labels, salt), target_risk if answered else None
        entry = Entry(adapter, client, salt, hashes(choices, salt), leader, promised, requested, others)
        stands_for = _text_under(adapter, target_risk, text) if requested and target_risk is not None else None
        self._ledger.remember(prediction_id, entry, self._remembered, stands_for)
        self.count(handle, familiarity, text)
        return requested

    def count(self, handle: AdapterHandle, familiarity: float | None, text: AskedText) -> None:
        """Count an answer in the test of drift; `predicted` does so for each new one.

        Args:
            handle: the adapter.
            familiarity: as for `predicted`.
            text: the text that the question is about.
        """
        gate = handle.calibration.gate if handle.calibration is not None else None
        if gate is not None and familiarity is not None:
            self._drift.answered(_contents(handle), gate, familiarity, text.key)

    async def told(self, prediction_id: str, label: Label | None, by: Key | None) -> bool:
        """Record an outcome and return whether the leading choice was right; repeating an outcome changes nothing.

        Args:
            prediction_id: id of the answer.
            label: the right choice, None if no offered one is right; it replaces any earlier outcome.
            by: the key that reports; None without keys.

        Raises:
            UnknownPredictionError: if the prediction is unknown, too old, of an unloaded adapter, or was asked with
                another key and this key is not an admin's.
            InvalidRequestError: if the label is not one of the offered choices.
            FeedbackUnavailableError: if the ledger cannot be reached.
        """
        entry = await self._ledger.find(prediction_id)
        if entry is None or not self._served(entry.adapter) or not _may_tell(by, entry):
            raise UnknownPredictionError(
                "No prediction of that id is known. The prediction may be too old, of an adapter that is no longer "
                "loaded, asked with another key, or, without --feedback-redis, from another replica: send feedback "
                "with the key that asked, and to the replica that answered unless all replicas share one store.",
                param="prediction_id",
            )
        position = entry.position(label)
        if position is None:
            raise InvalidRequestError(
                "This label is not one of the choices that were offered: send one of them in the same spelling, the "
                "number of a score's level, or none_of_these.",
                code="label_not_offered",
                param="label",
            )
        target_risk = entry.target_risk
        known = self._known(entry.adapter, target_risk)
        before, tally = await self._ledger.settle(prediction_id, entry, position)
        correct = position == entry.leader
        # The adapter may have been replaced in the meantime.
        if target_risk is not None and self._served(entry.adapter):
            name = entry.adapter.name
            if before is None:
                self._metrics.outcome(name, target_risk, correct=correct, requested=entry.requested)
            elif (before == entry.leader) != correct:
                self._metrics.corrected(name, target_risk, correct=correct, requested=entry.requested)
            if tally is not None:
                promise = self._show_promise(entry.adapter, target_risk, tally, known)
                if promise.rejected_at > tally.rejected_at:
                    await self._ledger.reject(entry.adapter, target_risk, promise.rejected_at)
        return correct

    def drift_since(self, handle: AdapterHandle) -> int | None:
        """Return the Unix time at which other questions than the calibration's were first noticed; None if never."""
        return self._drift.since(_contents(handle))

    def forget(self, handle: AdapterHandle) -> None:
        """Drop the predictions and the evidence of an unloaded adapter."""
        adapter = _contents(handle)
        self._ledger.forget(adapter)
        self._drift.forget(adapter)
        for key in [key for key in self._promises if key[0] == adapter]:
            del self._promises[key]
        looking = self._looking.pop(adapter, None)
        if looking is not None:
            looking.cancel()
        for key in [key for key in self._promised_texts if key[0] == adapter]:
            del self._promised_texts[key]

    async def close(self) -> None:
        """Finish pending writes, within about two seconds."""
        await asyncio.gather(self._stop_looking(), self._drift.close())
        await self._ledger.close()

    async def _stop_looking(self) -> None:
        looking = [*self._looking.values()]
        self._looking.clear()
        for task in looking:
            task.cancel()
        if looking:  # a client of Redis may turn the cancellation into an error, which ends the task later
            await asyncio.wait(looking, timeout=_CLOSE_S)

    async def _look(self, adapter: Contents, targets: Sequence[float]) -> None:
        """Show what other replicas were told, as long as the adapter is served."""
        while adapter in self._looking:
            try:
                for target_risk in targets:
                    known = self._known(adapter, target_risk)
                    tally = await self._ledger.tally(adapter, target_risk)
                    if tally is not None and self._served(adapter):
                        self._show_promise(adapter, target_risk, tally, known)
                pause = _LOOK_S
            except FeedbackUnavailableError as exc:
                self._failures.warning(f"The outcomes about adapter {adapter.name!r} cannot be read yet: {exc.message}")
                pause = _RETRY_S
            await asyncio.sleep(pause)

    def _known(self, adapter: Contents, target_risk: float | None) -> tuple[int, int, int] | None:
        """Return the counts that the metrics show; None before any."""
        promise = self._promises.get((adapter, target_risk)) if target_risk is not None else None
        return _counts(promise) if promise is not None else None

    def _remembered(self, entry: Entry | None) -> None:
        if entry is None:
            self._metrics.not_stored()
        elif entry.target_risk is not None and self._served(entry.adapter):
            self._metrics.promised(entry.adapter.name, entry.target_risk, requested=entry.requested)

    def _show_promise(
        self, adapter: Contents, target_risk: float, tally: Tally, known: tuple[int, int, int] | None
    ) -> Promise:
        """Return the promise with the latest outcomes, after showing it in the metrics.

        Args:
            adapter: the adapter.
            target_risk: the promised risk.
            tally: the ledger's reply, which is dropped if a reply with later outcomes came first.
            known: the counts that the metrics showed before the ledger was asked. If they still do, a reply with fewer
                outcomes is not an old one: the ledger has lost some.
        """
        promise = self._promises.setdefault((adapter, target_risk), Promise(target_risk))
        if _counts(tally) >= _counts(promise) or _counts(promise) == known:
            promise.observe(*tally)
            self._metrics.show_promise(adapter.name, promise)
        return promise

    def _picked(self, adapter: Contents, target_risk: float, text: AskedText) -> bool:
        """Return whether a text is in the random sample and was not asked about recently under the promise."""
        texts = self._promised_texts.setdefault((adapter, target_risk), RecentTexts())
        return self._drawn(text.key) and texts.add(text.key)

    def _drawn(self, name: bytes) -> bool:
        """Return whether a prediction, by its id, or a text, by its hash, is in the random sample.

        A hash decides, so that the choice does not depend on the answer, nor on how often a text is asked about.
        """
        digest = hashlib.blake2b(name, digest_size=8).digest()
        return int.from_bytes(digest) < self._rate * 2**64

    def _served(self, adapter: Contents) -> bool:
        handle = self._handle_of(adapter.name)
        return handle is not None and _contents(handle) == adapter


def _contents(handle: AdapterHandle) -> Contents:
    return Contents(handle.name, handle.digest, handle.calibration_digest)


def _text_under(adapter: Contents, target_risk: float, text: AskedText) -> bytes:
    """Return a hash of a text under an adapter's promise."""
    return hashlib.blake2b(json.dumps([*adapter, target_risk]).encode() + text.key, digest_size=16).digest()


def _counts(outcomes: Promise | Tally) -> tuple[int, int, int]:
    """Return the counts in an order in which each outcome and each correction makes the tuple greater."""
    return outcomes.n_outcomes, outcomes.n_cleared, outcomes.n_wrong


def _may_tell(by: Key | None, entry: Entry) -> bool:
    """Return whether a key may report the outcome: the key that asked, or an admin's key."""
    return entry.client == (by.name if by is not None else None) or (by is not None and by.scope == "admin")
