"""Errors of the client, one for each way in which a call ends without an answer.

ClientError
├── RefusedError          the server refuses the request, and would refuse it again
├── FailedError           the server accepted the request and failed
├── OverloadedError       the queue was full at the last try
├── UnavailableError      the server was starting, shutting down or too slow at the last try
├── UnreachableError      there was no connection, or it broke
├── DeadlineError         the deadline passed during a try
└── MalformedAnswerError  the response is not one of a blora server, or contradicts itself
"""

import re

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
        message: description of the failure. The name of the invalid field is put in front if the description lacks it.
        status: HTTP status; None without a response.
        code: the server's error code.
        param: the invalid field, if the server names one.
        retry_after_s: seconds after which to try again, if the server says so.
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
        named = param is None or re.search(rf"(?<!\w){re.escape(param)}(?!\w)", message)
        super().__init__(message if named else f"{param}: {message}")
        self.status = status
        self.code = code
        self.param = param
        self.retry_after_s = retry_after_s


class RefusedError(ClientError):
    """The server refuses the request, and would refuse it again."""


class FailedError(ClientError):
    """The server accepted the request and failed."""


class OverloadedError(ClientError):
    """The server's queue was full at the last try, and no retry or no time was left for another one."""


class UnavailableError(ClientError):
    """The server was starting, shutting down or too slow at the last try, and no retry or no time was left."""


class UnreachableError(ClientError):
    """There was no connection to the server, or it broke."""


class DeadlineError(ClientError):
    """The deadline passed during a try; the cause is the failure of the try before, if there was one."""


class MalformedAnswerError(ClientError):
    """The response is not one of a blora server, or contradicts itself."""
