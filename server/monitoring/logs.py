"""Logging as JSON lines or as text, without any text of requests."""

import json
import logging
import math
import re
import sys
import time
from collections.abc import Callable
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry.trace import format_trace_id, get_current_span

__all__ = ["REQUEST_ID", "Form", "ThrottledLogger", "configure", "log_outcome"]

Form = Literal["text", "json"]

# Characters that some program treats as a line break, or that move a terminal's cursor.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
_LINE_BREAK = re.compile("\r\n|[\n\r\x0b\x0c\x1c-\x1e\x85\u2028\u2029]")

REQUEST_ID: ContextVar[str | None] = ContextVar("blora_request_id", default=None)
"""Id of the current request."""


def configure(level: str, form: Form) -> None:
    """Configure logging to standard error, from a level on."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # logs a line for each request to vLLM
    if level == "info":
        # Its seven lines about starting and stopping would bury the line with the reason of a failed start.
        logging.getLogger("uvicorn.error").setLevel(logging.WARNING)


def log_outcome(logger: logging.Logger, outcome: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """Log the outcome and the fields of a request or of a change of adapters, in one line."""
    known = {"request_id": REQUEST_ID.get()} | fields
    known = {name: value for name, value in known.items() if value is not None}
    trace = get_current_span().get_span_context()
    if trace.is_valid:
        known["trace_id"] = format_trace_id(trace.trace_id)
    logger.log(level, outcome, extra={"fields": known})


class ThrottledLogger:
    """Logger that writes at most one warning per second and counts the others.

    Args:
        logger: the logger to write to.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, logger: logging.Logger, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = logger
        self._clock = clock
        self._next = -math.inf
        self._n_suppressed = 0

    def warning(self, message: str) -> None:
        """Log a warning with the number of suppressed ones since the last, or suppress and count it."""
        now = self._clock()
        if now < self._next:
            self._n_suppressed += 1
            return
        more = f" ({self._n_suppressed} more since the last such line)" if self._n_suppressed else ""
        self._logger.warning("%s%s", message, more)
        self._next, self._n_suppressed = now + 1, 0


class _Json(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=False)


class _Text(logging.Formatter):
    """Formatter that keeps a record on one line, whatever it contains, and indents the lines of a traceback."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802 - logging's name
        fields = getattr(record, "fields", {})
        line = " ".join([super().formatMessage(record), *(f"{name}={value}" for name, value in fields.items())])
        return _CONTROL.sub(lambda found: repr(found[0])[1:-1], line)

    def formatException(self, ei: Any) -> str:  # noqa: N802 - logging's name
        return "  " + _LINE_BREAK.sub("\n  ", super().formatException(ei))
