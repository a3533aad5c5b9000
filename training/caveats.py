"""Warnings about an adapter that was just written."""

import logging

from blora.decision.temperature import FEW_ROWS

__all__ = ["warn_of_few_rows"]

logger = logging.getLogger(__name__)


def warn_of_few_rows(n_rows: int) -> None:
    """Log a warning if there are few validation rows."""
    if n_rows < FEW_ROWS:
        logger.warning(
            "there are only %d validation rows: the recalibration stays weak unless all of them agree, and their "
            "accuracy, NLL and ECE are unreliable; use at least %d, better several hundred",
            *(n_rows, FEW_ROWS),
        )
