"""Everything that can go wrong with a request, and the one table that gives it an HTTP status.

ServerError
├── InvalidRequestError     the body says something we cannot accept; one code per kind of mistake
├── UnauthorizedError       no key, or one that nobody has
├── ForbiddenError          a key that opens less than was asked for
├── UnknownPredictionError  no prediction of that id, or not any more
├── UnknownAdapterError     no adapter of that name
├── AdapterConflictError    a name that is taken by other contents, or one adapter too many
├── DigestMismatchError     the adapter is here, with other contents than the client pinned
├── NoSuchRouteError, MethodNotAllowedError, UnsupportedMediaTypeError
├── TooLargeError           body, prompt, batch or forward pass over its limit
├── InvalidHttpError        what came is not HTTP, or may be read in two ways
├── SlowRequestError        the body did not come in time
├── TryLaterError           try again in `retry_after_s`
│   ├── QueueFullError      no room to wait in
│   ├── RateLimitedError    too many requests with one key
│   └── TooManyConnectionsError  no room for a connection
├── ModelFailureError       the forward pass raised
├── NonFiniteError          the forward pass gave NaN or infinity
├── InternalError           a bug of ours
├── FeedbackUnavailableError  the store of predictions is out of reach
├── NotReadyError           no model yet
├── DrainingError           no model much longer
├── DeadlineExceededError   the answer did not come in time, or an adapter's files did not
└── DisconnectedError       the client left before the answer; nobody reads this one

Messages say what is wrong, what was expected and what to do: `got X, expected Y: do Z` where a value is out of place,
plain sentences elsewhere. They never repeat the prompt.
"""

from typing import NamedTuple

__all__ = [
    "TABLE",
    "AdapterConflictError",
    "DeadlineExceededError",
    "DigestMismatchError",
    "DisconnectedError",
    "DrainingError",
    "FeedbackUnavailableError",
    "ForbiddenError",
    "InternalError",
    "InvalidHttpError",
    "InvalidRequestError",
    "MethodNotAllowedError",
    "ModelFailureError",
    "NoSuchRouteError",
    "NonFiniteError",
    "NotReadyError",
    "QueueFullError",
    "RateLimitedError",
    "Row",
    "ServerError",
    "SlowRequestError",
    "TooLargeError",
    "TooManyConnectionsError",
    "TryLaterError",
    "UnauthorizedError",
    "UnknownAdapterError",
    "UnknownPredictionError",
    "UnsupportedMediaTypeError",
]


class Row(NamedTuple):
    """How one error code looks from outside: HTTP status, and the family it belongs to."""

    status: int
    type: str


TABLE: dict[str, Row] = {
    "invalid_http": Row(400, "invalid_request_error"),
    "conflict": Row(422, "invalid_request_error"),
    "duplicate_choices": Row(422, "invalid_request_error"),
    "empty_policy": Row(422, "invalid_request_error"),
    "empty_string": Row(422, "invalid_request_error"),
    "invalid_adapter": Row(422, "invalid_request_error"),
    "invalid_json": Row(422, "invalid_request_error"),
    "invalid_length": Row(422, "invalid_request_error"),
    "invalid_prompt": Row(422, "invalid_request_error"),
    "invalid_type": Row(422, "invalid_request_error"),
    "invalid_value": Row(422, "invalid_request_error"),
    "label_not_offered": Row(422, "invalid_request_error"),
    "missing": Row(422, "invalid_request_error"),
    "not_calibrated": Row(422, "invalid_request_error"),
    "not_finite": Row(422, "invalid_request_error"),
    "out_of_range": Row(422, "invalid_request_error"),
    "unknown_field": Row(422, "invalid_request_error"),
    "unauthorized": Row(401, "authentication_error"),
    "forbidden": Row(403, "permission_error"),
    "unknown_adapter": Row(404, "not_found_error"),
    "unknown_prediction": Row(404, "not_found_error"),
    "digest_mismatch": Row(404, "not_found_error"),
    "not_found": Row(404, "not_found_error"),
    "method_not_allowed": Row(405, "invalid_request_error"),
    "slow_request": Row(408, "client_error"),
    "adapter_conflict": Row(409, "conflict_error"),
    "too_many_adapters": Row(409, "conflict_error"),
    "adapter_too_large": Row(413, "too_large_error"),
    "body_too_large": Row(413, "too_large_error"),
    "prompt_too_long": Row(413, "too_large_error"),
    "too_many_inputs": Row(413, "too_large_error"),
    "too_large": Row(413, "too_large_error"),
    "too_much_work": Row(413, "too_large_error"),
    "unsupported_media_type": Row(415, "invalid_request_error"),
    "queue_full": Row(429, "rate_limit_error"),
    "rate_limited": Row(429, "rate_limit_error"),
    "disconnected": Row(499, "client_error"),
    "model_failure": Row(500, "server_error"),
    "non_finite": Row(500, "server_error"),
    "internal_error": Row(500, "server_error"),
    "feedback_unavailable": Row(503, "unavailable_error"),
    "not_ready": Row(503, "unavailable_error"),
    "too_many_connections": Row(503, "unavailable_error"),
    "draining": Row(503, "unavailable_error"),
    "adapter_stalled": Row(504, "timeout_error"),
    "deadline_exceeded": Row(504, "timeout_error"),
}


class ServerError(Exception):
    """A request that gets no answer.

    Args:
        message: what is wrong, what was expected, and what to do.
        code: a key of TABLE; the class's own unless several share the class.
        param: dotted path of the field at fault, if one is.
    """

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.param = param

    @property
    def status(self) -> int:
        """The HTTP status of the answer."""
        return TABLE[self.code].status

    @property
    def type(self) -> str:
        """The family of errors this one belongs to."""
        return TABLE[self.code].type


class InvalidRequestError(ServerError):
    """The body says something the server cannot accept."""

    code = "invalid_value"


class UnauthorizedError(ServerError):
    """No key, or one that nobody has."""

    code = "unauthorized"


class ForbiddenError(ServerError):
    """A key that opens less than was asked for."""

    code = "forbidden"


class FeedbackUnavailableError(ServerError):
    """The store of predictions cannot be read or written."""

    code = "feedback_unavailable"


class UnknownAdapterError(ServerError):
    """No adapter of that name is loaded; the base model never answers in its place."""

    code = "unknown_adapter"


class UnknownPredictionError(ServerError):
    """No prediction of that id, or not any more."""

    code = "unknown_prediction"


class AdapterConflictError(ServerError):
    """A name that is taken by other contents, or one adapter too many."""

    code = "adapter_conflict"


class DigestMismatchError(ServerError):
    """The adapter's contents are not those that the client pinned."""

    code = "digest_mismatch"


class NoSuchRouteError(ServerError):
    """Nothing lives at this path."""

    code = "not_found"


class MethodNotAllowedError(ServerError):
    """The path exists, under another method."""

    code = "method_not_allowed"


class TooLargeError(ServerError):
    """A body, prompt, batch or forward pass over its limit."""

    code = "too_large"


class UnsupportedMediaTypeError(ServerError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class InvalidHttpError(ServerError):
    """What came is not HTTP, or may be read in two ways."""

    code = "invalid_http"


class SlowRequestError(ServerError):
    """The body did not arrive in time."""

    code = "slow_request"


class TryLaterError(ServerError):
    """Nothing is wrong with the request but its time.

    Args:
        message: what is wrong, what was expected, and what to do.
        retry_after_s: seconds after which there should be room.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(TryLaterError):
    """No room to wait in."""

    code = "queue_full"


class RateLimitedError(TryLaterError):
    """Too many requests with one key."""

    code = "rate_limited"


class TooManyConnectionsError(TryLaterError):
    """All the connections that there may be are in use."""

    code = "too_many_connections"


class ModelFailureError(ServerError):
    """The forward pass raised."""

    code = "model_failure"


class NonFiniteError(ServerError):
    """The forward pass gave NaN or infinity, which is never passed off as a probability."""

    code = "non_finite"


class InternalError(ServerError):
    """A bug of the server."""


class NotReadyError(ServerError):
    """The model is still loading, or could not be loaded."""

    code = "not_ready"


class DrainingError(ServerError):
    """The server is on its way out."""

    code = "draining"


class DeadlineExceededError(ServerError):
    """The answer did not come in time, or the files of an adapter did not."""

    code = "deadline_exceeded"


class DisconnectedError(ServerError):
    """The client closed the connection before the answer was there."""

    code = "disconnected"
