"""How questions end: answered, failed, or answered in vain; each ending is counted and logged."""

import logging

from blora.server.engines.handle import AdapterHandle
from blora.server.errors import ServerError
from blora.server.keys import client_name
from blora.server.monitoring.logs import log_outcome
from blora.server.monitoring.metrics import SIBLING_FAILED, ServerMetrics
from blora.server.prediction.response import Answered

__all__ = ["Endings"]

logger = logging.getLogger(__name__)


class Endings:
    """Counts and log of the ways in which questions end.

    Args:
        metrics: the counts.
    """

    def __init__(self, metrics: ServerMetrics) -> None:
        self._metrics = metrics

    def answered(self, handle: AdapterHandle, given: Answered, *, n_tokens: int) -> None:
        """Count an answer that the client gets, withheld or not.

        Args:
            handle: the adapter that answered.
            given: the answer.
            n_tokens: tokens of the question and its choices.
        """
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

    def unanswered(self, adapter: str, error: ServerError | None) -> None:
        """Count a question without an answer, because of an error or, for None, because another question failed."""
        if error is not None:
            self.failed(adapter, error)
            return
        self._metrics.sibling_failed(adapter)
        log_outcome(logger, SIBLING_FAILED, adapter=adapter)
