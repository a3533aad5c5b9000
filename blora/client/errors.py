"""How a call can end without an answer.

ClientError
├── RefusedError          the server will not take this request, however often it is sent
├── FailedError           the server took it and failed
├── OverloadedError       the queue is full, and stayed so for as long as there was time
├── UnavailableError      the server is starting or going down, and stayed so
├── UnreachableError      no connection, or one that broke
├── DeadlineError         the time ran out before an answer came
└── MalformedAnswerError  what came is no answer of a blora server
"""

from blora.errors import BloraError

__all__ = [
    "ClientError",
    "DeadlineError",
    "FailedError",
    "MalformedAnswerError",
    "OverloadedError",
    "RefusedError",
    "UnavailableError",
    "UnreachableError",
]


class ClientError(BloraError):
    """A call that ended without an answer.

    Args:
        message: what happened, as far as it is known.
        status: the HTTP status, where there was an answer at all.
        code: the server's name for the error.
        param: the field at fault, where the server names one.
        retry_after_s: when to try again, where the server says so.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int | None = None,
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class RefusedError(ClientError):
    """The server will not take this request, however often it is sent."""


class FailedError(ClientError):
    """The server took the request and failed."""


class OverloadedError(ClientError):
    """The queue is full."""


class UnavailableError(ClientError):
    """The server is starting or going down."""


class UnreachableError(ClientError):
    """No connection, or one that broke."""


class DeadlineError(ClientError):
    """The time ran out before an answer came."""


class MalformedAnswerError(ClientError):
    """What came is no answer of a blora server."""
