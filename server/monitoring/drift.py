"""Drift without labels: the familiarity of every answer, and the evidence that the questions have changed.

An adapter is watched if its calibration has a gate, which says when a question is unfamiliar and proves how many
familiar questions are called so. One answer about each of the recent texts is counted, as a calibration counts one row
for each text. The counts go through the ledger, so that replicas with a common one judge the sum of their answers.
Answers never wait for the ledger: what it has not taken yet goes with the next answer.
"""

import asyncio
import logging
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from operator import attrgetter

from blora.decision.drift import DriftTest, Seen
from blora.decision.gate import Gate
from blora.scores import SCORES
from blora.server.errors import FeedbackUnavailableError
from blora.server.monitoring.ledgers.protocol import Contents, Ledger
from blora.server.monitoring.logs import ThrottledLogger, log_outcome
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.monitoring.recent_texts import RecentTexts

__all__ = ["DriftWatch"]

logger = logging.getLogger(__name__)

_CLOSE_S = 1.0


@dataclass
class _Watched:
    """State of one adapter.

    Attributes:
        test: the evidence.
        counter: name of the counts in the ledger.
        texts: the texts whose answers do not count again.
        own: counts of the answers since the adapter was loaded.
        told: the counts that the ledger has taken.
        counters: the latest counts of each counter in the ledger, kept in case the ledger loses them.
        telling: the task that hands them on.
        since: Unix time at which a drift was first noticed.
    """

    test: DriftTest
    counter: str = field(default_factory=lambda: secrets.token_hex(8))
    texts: RecentTexts = field(default_factory=RecentTexts)
    own: Seen = field(default_factory=Seen)
    told: Seen = field(default_factory=Seen)
    counters: dict[str, Seen] = field(default_factory=dict)
    telling: asyncio.Task[None] | None = None
    since: int | None = None


class DriftWatch:
    """The evidence of drift about each watched adapter.

    Args:
        metrics: shows the evidence.
        ledger: counts the answers.
    """

    def __init__(self, metrics: ServerMetrics, ledger: Ledger) -> None:
        self._metrics = metrics
        self._ledger = ledger
        self._watched: dict[Contents, _Watched] = {}
        self._failures = ThrottledLogger(logger)

    def answered(self, adapter: Contents, gate: Gate, familiarity: float, text: bytes) -> None:
        """Count an answer to a question that the calibration speaks of, unless one about the same text was counted.

        Args:
            adapter: the adapter that answered.
            gate: the gate of its calibration.
            familiarity: conformal p-value of the question.
            text: key of the text that the question is about.
        """
        watched = self._watched.setdefault(adapter, _Watched(DriftTest(gate.max_false_alarms)))
        unfamiliar = SCORES["familiarity"].fails(familiarity, gate.min_familiarity)
        if unfamiliar:
            self._metrics.unfamiliar(adapter.name)
        if not watched.texts.add(text):
            return
        watched.own += Seen(1, int(unfamiliar))
        if watched.telling is None or watched.telling.done():
            watched.telling = asyncio.create_task(self._tell(adapter, watched))

    def since(self, adapter: Contents) -> int | None:
        """Return the Unix time at which a drift was first noticed, in seconds; None if none was."""
        watched = self._watched.get(adapter)
        return watched.since if watched is not None else None

    def forget(self, adapter: Contents) -> None:
        """Drop the evidence about an unloaded adapter."""
        watched = self._watched.pop(adapter, None)
        if watched is not None and watched.telling is not None:
            watched.telling.cancel()

    async def close(self) -> None:
        """Hand the last counts to the ledger, unless that takes too long."""
        telling = [one.telling for one in self._watched.values() if one.telling is not None]
        if telling:
            _, late = await asyncio.wait(telling, timeout=_CLOSE_S)
            for task in late:
                task.cancel()

    async def _tell(self, adapter: Contents, watched: _Watched) -> None:
        while watched.told != watched.own:
            own = watched.own
            try:
                counters, noticed = await self._ledger.count(adapter, watched.counter, own)
            except FeedbackUnavailableError as exc:  # the next answer tries again
                self._failures.warning(f"Drift is not judged: {exc.message}")
                return
            watched.told = own
            for name, seen in counters.items():
                watched.counters[name] = max(watched.counters.get(name, Seen()), seen, key=attrgetter("n_answers"))
            watched.test.observe(sum(watched.counters.values(), Seen()))
            self._metrics.drift(adapter.name, watched.test.wealth)
            known = [at for at in (watched.since, noticed) if at is not None]
            if not known and watched.test.noticed:
                log_outcome(logger, "drift_noticed", level=logging.WARNING, adapter=adapter.name, digest=adapter.digest)
                known = [int(time.time())]
            watched.since = min(known, default=None)
            if watched.since is not None and watched.since != noticed:  # also if the ledger lost it
                with suppress(FeedbackUnavailableError):
                    watched.since = await self._ledger.notice(adapter, watched.since)
