"""Errors of the server, and the tables of their HTTP statuses and types.

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
├── AdapterUnavailableError  an adapter cannot be read, or loaded by the engine, at the moment
├── DrainingError           the server is shutting down
├── DeadlineExceededError   an answer or the reading of an adapter missed its deadline
└── DisconnectedError       the client disconnected before the answer

Messages say what is wrong, what was expected and what to do: `got X, expected Y: do Z` for a wrong value, plain
sentences elsewhere. They never repeat the prompt.
"""

__all__ = [
    "STATUS",
    "TYPES",
    "AdapterConflictError",
    "AdapterUnavailableError",
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


STATUS: dict[str, int] = {
    "invalid_http": 400,
    "not_text": 400,  # for 400 a client asks again without its images
    "conflict": 422,
    "duplicate_choices": 422,
    "empty_policy": 422,
    "empty_string": 422,
    "invalid_adapter": 422,
    "invalid_json": 422,
    "invalid_length": 422,
    "invalid_prompt": 422,
    "invalid_type": 422,
    "invalid_value": 422,
    "label_not_offered": 422,
    "missing": 422,
    "not_calibrated": 422,
    "not_finite": 422,
    "out_of_range": 422,
    "unknown_field": 422,
    "unknown_question": 422,
    "unauthorized": 401,
    "forbidden": 403,
    "unknown_adapter": 404,
    "unknown_prediction": 404,
    "digest_mismatch": 404,
    "not_found": 404,
    "method_not_allowed": 405,
    "slow_request": 408,
    "adapter_conflict": 409,
    "too_many_adapters": 409,
    "adapter_too_large": 413,
    "body_too_large": 413,
    "prompt_too_long": 413,
    "too_many_inputs": 413,
    "too_large": 413,
    "too_much_work": 413,
    "unsupported_media_type": 415,
    "queue_full": 429,
    "rate_limited": 429,
    "disconnected": 499,
    "model_failure": 500,
    "non_finite": 500,
    "internal_error": 500,
    "adapter_unavailable": 503,
    "feedback_unavailable": 503,
    "not_ready": 503,
    "too_many_connections": 503,
    "draining": 503,
    "adapter_stalled": 504,
    "deadline_exceeded": 504,
}
"""HTTP status of each error code."""

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
        code: a key of STATUS; by default the code of the class.
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
        return STATUS[self.code]

    @property
    def type(self) -> str:
        """Error type in the response, which groups related codes."""
        return TYPES[self.status]


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
