"""How questions end: with an answer that a client gets, an error, or nothing; each ending is counted and logged."""

import asyncio
import logging
from collections.abc import Callable

from blora.server.engines.handle import AdapterHandle
from blora.server.errors import ServerError
from blora.server.keys import client_name
from blora.server.monitoring.logs import log_outcome
from blora.server.monitoring.metrics import SIBLING_FAILED, ServerMetrics
from blora.server.prediction.response import Answered
from blora.server.prediction.siblings import Made

__all__ = ["Endings"]

logger = logging.getLogger(__name__)


class Endings:
    """Counts and log of the ways in which questions end.

    Args:
        metrics: the counts.
        timeout_s: from a question's arrival until its deadline.
    """

    def __init__(self, metrics: ServerMetrics, timeout_s: float) -> None:
        self._metrics = metrics
        self._timeout_s = timeout_s

    def made(
        self,
        handle: AdapterHandle,
        given: Answered,
        *,
        n_tokens: int,
        deadline: float,
        store: Callable[[], bool],
    ) -> Made:
        """Return the actions on an answer, of which one is taken once it is known whether the client gets it.

        Args:
            handle: the adapter that answered.
            given: the answer.
            n_tokens: tokens of the question and its choices.
            deadline: of the question, time of the event loop.
            store: stores the answer for its feedback, and returns whether its outcome is requested.
        """
        seconds = self._seconds(deadline)

        def record() -> bool:
            requested = store()
            self._answered(handle, given, n_tokens)
            self._metrics.finished(seconds)
            return requested

        def discard(error: ServerError | None) -> None:
            self.not_answered(handle.name, error)
            if error is not None:
                self._metrics.finished(seconds)

        return Made(record, discard)

    def finished(self, deadline: float) -> None:
        """Record the time from the arrival of a question with this deadline until now."""
        self._metrics.finished(self._seconds(deadline))

    def _seconds(self, deadline: float) -> float:
        return self._timeout_s + asyncio.get_running_loop().time() - deadline

    def _answered(self, handle: AdapterHandle, given: Answered, n_tokens: int) -> None:
        response, decision = given.response, given.decision
        reasons = [reason.name for reason in decision.reasons]
        self._metrics.predicted(handle.name, given.prediction, reasons=reasons, n_samples=response.n_samples)
        log_outcome(
            logger,
            "abstained" if decision.abstained else "answered",
            prediction_id=response.id,
            adapter=handle.name,
            digest=handle.digest,
            client=client_name(),
            n_samples=response.n_samples,
            tokens=n_tokens,
            queue_ms=round(response.timing.queue_ms, 1),
            compute_ms=round(response.timing.compute_ms, 1),
        )

    def failed(self, adapter: str, error: ServerError) -> None:
        """Count a question that failed with an error; `adapter` is the name of a loaded adapter, or UNKNOWN_ADAPTER."""
        self._metrics.failed(error, adapter)
        log_outcome(logger, error.code, adapter=adapter)

    def not_answered(self, adapter: str, error: ServerError | None) -> None:
        """Count a question without an answer, because of an error or, for None, because another question failed."""
        if error is not None:
            self.failed(adapter, error)
            return
        self._metrics.sibling_failed(adapter)
        log_outcome(logger, SIBLING_FAILED, adapter=adapter)
