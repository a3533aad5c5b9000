"""Errors of the server, and the table that maps each error code to an HTTP status.

ServerError
├── InvalidRequestError     the body is invalid; one code for each kind of mistake
├── UnauthorizedError       the key is missing or unknown
├── ForbiddenError          the key does not permit the request
├── UnknownPredictionError  no prediction of that id is known, or no longer
├── UnknownAdapterError     no adapter of that name is loaded
├── AdapterConflictError    the name belongs to another adapter, or there are too many adapters
├── DigestMismatchError     the adapter has other contents than the client pinned
├── NoSuchRouteError, MethodNotAllowedError, UnsupportedMediaTypeError
├── TooLargeError           the body, prompt, batch or forward pass exceeds its limit
├── InvalidHttpError        the request is malformed or ambiguous HTTP
├── SlowRequestError        the body did not arrive in time
├── TryLaterError           try again in `retry_after_s`
│   ├── QueueFullError      the queue is full
│   ├── RateLimitedError    the client has sent too many requests or bytes
│   └── TooManyConnectionsError  all connections are in use
├── ModelFailureError       the forward pass raised
├── NonFiniteError          the forward pass returned NaN or infinity
├── InternalError           a bug in the server
├── FeedbackUnavailableError  the store of predictions is unreachable
├── NotReadyError           the model is not loaded, or cannot take an adapter at the moment
├── DrainingError           the server is shutting down
├── DeadlineExceededError   an answer or the reading of an adapter missed its deadline
└── DisconnectedError       the client disconnected before the answer

Messages say what is wrong, what was expected and what to do: `got X, expected Y: do Z` for a wrong value, plain
sentences elsewhere. They never repeat the prompt.
"""

from typing import NamedTuple

__all__ = [
    "TABLE",
    "AdapterConflictError",
    "DeadlineExceededError",
    "DigestMismatchError",
    "DisconnectedError",
    "DrainingError",
    "ErrorRow",
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


class ErrorRow(NamedTuple):
    """HTTP status and error type of one error code."""

    status: int
    type: str


TABLE: dict[str, ErrorRow] = {
    "invalid_http": ErrorRow(400, "invalid_request_error"),
    "not_text": ErrorRow(400, "invalid_request_error"),  # for 400 a client asks again without its images
    "conflict": ErrorRow(422, "invalid_request_error"),
    "duplicate_choices": ErrorRow(422, "invalid_request_error"),
    "empty_policy": ErrorRow(422, "invalid_request_error"),
    "empty_string": ErrorRow(422, "invalid_request_error"),
    "invalid_adapter": ErrorRow(422, "invalid_request_error"),
    "invalid_json": ErrorRow(422, "invalid_request_error"),
    "invalid_length": ErrorRow(422, "invalid_request_error"),
    "invalid_prompt": ErrorRow(422, "invalid_request_error"),
    "invalid_type": ErrorRow(422, "invalid_request_error"),
    "invalid_value": ErrorRow(422, "invalid_request_error"),
    "label_not_offered": ErrorRow(422, "invalid_request_error"),
    "missing": ErrorRow(422, "invalid_request_error"),
    "not_calibrated": ErrorRow(422, "invalid_request_error"),
    "not_finite": ErrorRow(422, "invalid_request_error"),
    "out_of_range": ErrorRow(422, "invalid_request_error"),
    "unknown_field": ErrorRow(422, "invalid_request_error"),
    "unknown_question": ErrorRow(422, "invalid_request_error"),
    "unauthorized": ErrorRow(401, "authentication_error"),
    "forbidden": ErrorRow(403, "permission_error"),
    "unknown_adapter": ErrorRow(404, "not_found_error"),
    "unknown_prediction": ErrorRow(404, "not_found_error"),
    "digest_mismatch": ErrorRow(404, "not_found_error"),
    "not_found": ErrorRow(404, "not_found_error"),
    "method_not_allowed": ErrorRow(405, "invalid_request_error"),
    "slow_request": ErrorRow(408, "client_error"),
    "adapter_conflict": ErrorRow(409, "conflict_error"),
    "too_many_adapters": ErrorRow(409, "conflict_error"),
    "adapter_too_large": ErrorRow(413, "too_large_error"),
    "body_too_large": ErrorRow(413, "too_large_error"),
    "prompt_too_long": ErrorRow(413, "too_large_error"),
    "too_many_inputs": ErrorRow(413, "too_large_error"),
    "too_large": ErrorRow(413, "too_large_error"),
    "too_much_work": ErrorRow(413, "too_large_error"),
    "unsupported_media_type": ErrorRow(415, "invalid_request_error"),
    "queue_full": ErrorRow(429, "rate_limit_error"),
    "rate_limited": ErrorRow(429, "rate_limit_error"),
    "disconnected": ErrorRow(499, "client_error"),
    "model_failure": ErrorRow(500, "server_error"),
    "non_finite": ErrorRow(500, "server_error"),
    "internal_error": ErrorRow(500, "server_error"),
    "feedback_unavailable": ErrorRow(503, "unavailable_error"),
    "not_ready": ErrorRow(503, "unavailable_error"),
    "too_many_connections": ErrorRow(503, "unavailable_error"),
    "draining": ErrorRow(503, "unavailable_error"),
    "adapter_stalled": ErrorRow(504, "timeout_error"),
    "deadline_exceeded": ErrorRow(504, "timeout_error"),
}


class ServerError(Exception):
    """Base of all errors that end a request without an answer.

    Args:
        message: what is wrong, what was expected, and what to do.
        code: a key of TABLE; by default the code of the class.
        param: dotted path of the invalid field, if there is one.
    """

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.param = param

    @property
    def status(self) -> int:
        """HTTP status of the response."""
        return TABLE[self.code].status

    @property
    def type(self) -> str:
        """Error type in the response, which groups related codes."""
        return TABLE[self.code].type


class InvalidRequestError(ServerError):
    """The body is invalid."""

    code = "invalid_value"


class UnauthorizedError(ServerError):
    """The request's API key is missing or unknown."""

    code = "unauthorized"


class ForbiddenError(ServerError):
    """The request's API key does not permit the request."""

    code = "forbidden"


class FeedbackUnavailableError(ServerError):
    """The store of predictions cannot be read or written."""

    code = "feedback_unavailable"


class UnknownAdapterError(ServerError):
    """No adapter of that name is loaded; the base model never answers in place of an adapter."""

    code = "unknown_adapter"


class UnknownPredictionError(ServerError):
    """No prediction of that id is known, or no longer."""

    code = "unknown_prediction"


class AdapterConflictError(ServerError):
    """The name belongs to an adapter with other contents, or there are too many adapters."""

    code = "adapter_conflict"


class DigestMismatchError(ServerError):
    """The adapter's contents differ from the digest that the client pinned."""

    code = "digest_mismatch"


class NoSuchRouteError(ServerError):
    """There is no route at this path."""

    code = "not_found"


class MethodNotAllowedError(ServerError):
    """The path does not support the method."""

    code = "method_not_allowed"


class TooLargeError(ServerError):
    """A body, prompt, batch or forward pass exceeds its limit."""

    code = "too_large"


class UnsupportedMediaTypeError(ServerError):
    """The body is not declared as JSON."""

    code = "unsupported_media_type"


class InvalidHttpError(ServerError):
    """The request is malformed or ambiguous HTTP."""

    code = "invalid_http"


class SlowRequestError(ServerError):
    """The body did not arrive in time."""

    code = "slow_request"


class TryLaterError(ServerError):
    """The request is valid and may succeed later.

    Args:
        message: what is wrong, what was expected, and what to do.
        retry_after_s: seconds after which to try again.
    """

    def __init__(self, message: str, *, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class QueueFullError(TryLaterError):
    """The queue is full."""

    code = "queue_full"


class RateLimitedError(TryLaterError):
    """The client has sent too many requests or bytes."""

    code = "rate_limited"


class TooManyConnectionsError(TryLaterError):
    """All connections that the server allows are in use."""

    code = "too_many_connections"


class ModelFailureError(ServerError):
    """The forward pass raised."""

    code = "model_failure"


class NonFiniteError(ServerError):
    """The forward pass returned NaN or infinity, which is never reported as a probability."""

    code = "non_finite"


class InternalError(ServerError):
    """A bug in the server."""


class NotReadyError(ServerError):
    """The model is still loading, could not be loaded, or cannot take an adapter at the moment."""

    code = "not_ready"


class DrainingError(ServerError):
    """The server is shutting down."""

    code = "draining"


class DeadlineExceededError(ServerError):
    """An answer, or the reading of an adapter's files, missed its deadline."""

    code = "deadline_exceeded"


class DisconnectedError(ServerError):
    """The client closed the connection before the answer was ready."""

    code = "disconnected"
