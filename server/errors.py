"""Errors of the server, and the tables of their codes, HTTP statuses and types.

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
├── NotReadyError           the model is not loaded
├── EngineUnreachableError  what computes the answers cannot be reached
├── AdapterUnavailableError  an adapter cannot be read, or loaded by the engine, at the moment
├── DrainingError           the server is shutting down
├── DeadlineExceededError   an answer or the reading of an adapter missed its deadline
└── DisconnectedError       the client disconnected before the answer

Messages say what is wrong, what was expected and what to do: `got X, expected Y: do Z` for a wrong value, plain
sentences elsewhere. They never repeat the prompt.
"""

from typing import NamedTuple

__all__ = [
    "CODES",
    "TYPES",
    "AdapterConflictError",
    "AdapterUnavailableError",
    "DeadlineExceededError",
    "DigestMismatchError",
    "DisconnectedError",
    "DrainingError",
    "EngineUnreachableError",
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


class Code(NamedTuple):
    """An error code's HTTP status, and its meaning in a few words."""

    status: int
    meaning: str


CODES: dict[str, Code] = {
    "invalid_http": Code(400, "The request is malformed or ambiguous HTTP"),
    # For 400 a client asks again without its images.
    "not_text": Code(400, "An image or another part that is not text"),
    "conflict": Code(422, "Fields that exclude each other"),
    "duplicate_choices": Code(422, "Two choices that are equal"),
    "empty_policy": Code(422, "A policy without any threshold or target"),
    "empty_string": Code(422, "A text that must not be empty"),
    "invalid_adapter": Code(422, "The folder holds no adapter for this server"),
    "invalid_json": Code(422, "The body is not JSON"),
    "invalid_length": Code(422, "A list or a text is too long or too short"),
    "invalid_prompt": Code(422, "The template cannot render the prompt or chat, or the model cannot read it"),
    "invalid_type": Code(422, "A value of another JSON type"),
    "invalid_value": Code(422, "A value that is not accepted"),
    "label_not_offered": Code(422, "An outcome that was no choice of the answer"),
    "missing": Code(422, "A required field is missing"),
    "not_calibrated": Code(422, "The adapter's calibration does not cover the request"),
    "not_finite": Code(422, "A number that is NaN or infinite"),
    "out_of_range": Code(422, "A number that is too large or too small"),
    "unknown_field": Code(422, "A field that the route does not have"),
    "unknown_question": Code(422, "No adapter of the model answers this question"),
    "unauthorized": Code(401, "The API key is missing or unknown"),
    "forbidden": Code(403, "The API key or the server's settings do not permit the request"),
    "unknown_adapter": Code(404, "No adapter of that name is loaded"),
    "unknown_prediction": Code(404, "No answer of that id is known, or no longer"),
    "digest_mismatch": Code(404, "The adapter or its calibration is not the pinned one"),
    "not_found": Code(404, "No route at this path"),
    "method_not_allowed": Code(405, "The path does not support the method"),
    "slow_request": Code(408, "The body did not arrive in time"),
    "adapter_conflict": Code(
        409, "The name belongs to an adapter with other contents, or the new one would never abstain"
    ),
    "too_many_adapters": Code(409, "The server has `--max-adapters` adapters"),
    "adapter_too_large": Code(413, "The adapter's folder has too many bytes (`--max-adapter-bytes`), files or levels"),
    "body_too_large": Code(413, "The body exceeds its limit of bytes or values"),
    "prompt_too_long": Code(413, "The prompt or its choices have more tokens than the model or a forward pass takes"),
    "too_many_inputs": Code(413, "A batch has too many inputs"),
    "too_large": Code(413, "The request exceeds the limit of a forward pass, of the queue or of an answer"),
    "too_much_work": Code(413, "One input would take too long, with its draws"),
    "unsupported_media_type": Code(415, "The body is not declared as JSON"),
    "queue_full": Code(429, "The queue is full"),
    "rate_limited": Code(429, "The client has sent too many requests or bytes"),
    "disconnected": Code(499, "The client closed the connection first (in logs and metrics)"),
    "model_failure": Code(500, "The forward pass failed"),
    "non_finite": Code(500, "The forward pass returned NaN or infinity"),
    "internal_error": Code(500, "A bug in the server"),
    "adapter_unavailable": Code(503, "An adapter cannot be read or loaded at the moment"),
    "feedback_unavailable": Code(503, "The store of predictions cannot be reached"),
    "engine_unreachable": Code(503, "What computes the answers, vLLM, cannot be reached"),
    "not_ready": Code(503, "The model is not loaded"),
    "too_many_connections": Code(503, "All connections are in use"),
    "draining": Code(503, "The server is shutting down"),
    "adapter_stalled": Code(504, "An adapter's files could not be read in time"),
    "deadline_exceeded": Code(504, "The answer missed its deadline"),
}
"""Status and meaning of each error code."""

TYPES: dict[int, str] = {
    400: "invalid_request_error",
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    405: "invalid_request_error",
    408: "client_error",
    409: "conflict_error",
    413: "too_large_error",
    415: "invalid_request_error",
    422: "invalid_request_error",
    429: "rate_limit_error",
    499: "client_error",
    500: "server_error",
    503: "unavailable_error",
    504: "timeout_error",
}
"""Error type of each HTTP status, which groups related codes."""


class ServerError(Exception):
    """Base of all errors that end a request without an answer.

    Args:
        message: what is wrong, what was expected, and what to do.
        code: a key of CODES; by default the code of the class.
        param: dotted path of the invalid field, if there is one.

    Attributes:
        status: HTTP status of the response.
        type: error type in the response, which groups related codes.
    """

    code = "internal_error"

    def __init__(self, message: str, *, code: str | None = None, param: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.code = code or self.code
        self.status = CODES[self.code].status
        self.type = TYPES[self.status]
        self.param = param


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
    """The model is still loading, or could not be loaded."""

    code = "not_ready"


class EngineUnreachableError(ServerError):
    """What computes the answers cannot be reached at the moment."""

    code = "engine_unreachable"


class AdapterUnavailableError(ServerError):
    """An adapter cannot be read, or loaded for lack of memory or of a connection to the engine, at the moment."""

    code = "adapter_unavailable"


class DrainingError(ServerError):
    """The server is shutting down."""

    code = "draining"


class DeadlineExceededError(ServerError):
    """An answer, or the reading of an adapter's files, missed its deadline."""

    code = "deadline_exceeded"


class DisconnectedError(ServerError):
    """The client closed the connection before the answer was ready."""

    code = "disconnected"
