"""What the server writes down: an object of JSON a line for machines, or text for people; never what was asked."""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal

from opentelemetry.trace import format_trace_id, get_current_span

__all__ = ["REQUEST_ID", "Form", "configure", "write_down"]

Form = Literal["text", "json"]

REQUEST_ID: ContextVar[str | None] = ContextVar("blora_request_id", default=None)
"""Of the request that is being served."""


def configure(level: str, form: Form) -> None:
    """Sends everything from this level on to standard error."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Json() if form == "json" else _Text())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line a request to vLLM


def write_down(logger: logging.Logger, outcome: str, *, level: int = logging.INFO, **fields: Any) -> None:
    """A line about a request, or a change of the adapters: how it ended, and what is known of it."""
    known = {"request_id": REQUEST_ID.get()} | fields
    known = {name: value for name, value in known.items() if value is not None}
    trace = get_current_span().get_span_context()
    if trace.is_valid:
        known["trace_id"] = format_trace_id(trace.trace_id)
    logger.log(level, outcome, extra={"fields": known})


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
    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")

    def format(self, record: logging.LogRecord) -> str:
        fields = getattr(record, "fields", {})
        return " ".join([super().format(record), *(f"{name}={_in_a_line(value)}" for name, value in fields.items())])

    def formatMessage(self, record: logging.LogRecord) -> str:  # noqa: N802  # logging's name
        return _in_a_line(super().formatMessage(record))


def _in_a_line(value: object) -> str:
    """A text in which a file's name, say, cannot begin a line of its own."""
    text = str(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)
