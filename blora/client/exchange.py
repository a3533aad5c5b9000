"""Translation of questions to request bodies, and of responses to predictions or exceptions."""

import math
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from datetime import UTC
from email.utils import parsedate_to_datetime
from numbers import Real
from typing import Any, TypeVar

import httpx
from pydantic import ValidationError

from blora.client.answers import Answer, ErrorBody, Prediction
from blora.client.errors import (
    ClientError,
    FailedError,
    MalformedAnswerError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from blora.errors import ConfigError
from blora.scores import TABLE, TOLERANCE

__all__ = [
    "address",
    "at_least_one",
    "authorization",
    "check",
    "closed",
    "deadline",
    "kind_of",
    "of_kind",
    "question",
    "questions",
    "read_answer",
    "with_fields",
]

# Statuses of a request that got no answer this time: its body was slow, or the server or a proxy was.
_OUT_OF_SERVICE = frozenset({408, 502, 503, 504})

A = TypeVar("A", bound=Answer)
T = TypeVar("T")
Messages = Sequence[Mapping[str, str]]


def closed() -> ClientError:
    """Return the error of a call on a closed client."""
    return ClientError("This client is closed: make a new one")


def address(url: str) -> httpx.URL:
    """Return the parsed address of a server.

    Raises:
        ConfigError: if the address is malformed, does not begin with http:// or https:// and a host, has a user name or
            password, a query or a fragment, or ends in /v1; the message shows none of the first four.
    """
    with suppress(httpx.InvalidURL, UnicodeError):  # UnicodeError: the host is not an internationalised name
        parsed = httpx.URL(url)
        if parsed.scheme in ("http", "https") and parsed.host:
            if parsed.userinfo:  # httpx would send it in place of the API key
                raise ConfigError(
                    f"got an address of {parsed.host} with a user name or password, expected none: leave them out, and "
                    "pass the API key as api_key"
                )
            if b"?" in parsed.raw_path or parsed.fragment:  # httpx would append the path of a request to the query
                raise ConfigError(
                    "got an address with a query or a fragment, expected none: leave out the ? or # and what follows it"
                )
            if parsed.path.rstrip("/").endswith("/v1"):
                raise ConfigError(f"got the address {url!r}, expected that of the server: leave /v1 out")
            return parsed
    shown = re.sub(".*@", "...@", url, flags=re.DOTALL)  # what precedes an @ may be a password
    raise ConfigError(
        f"got the address {shown!r} of a server, expected http:// or https://, a host and, if any, a port number: "
        "write it like http://127.0.0.1:8000"
    )


def authorization(api_key: str | None) -> dict[str, str]:
    """Return the headers for an API key, from which surrounding whitespace is removed; none for None.

    Raises:
        ConfigError: if the key is empty or is not printable ASCII; the message does not show the key.
    """
    if api_key is None:
        return {}
    key = api_key.strip()
    if not key or not key.isascii() or not key.isprintable():
        raise ConfigError(
            f"got an API key of {len(key)} characters, expected printable ASCII characters: pass the key as "
            "`blora key` printed it, or None for a server without keys"
        )
    return {"authorization": f"Bearer {key}"}


def deadline(usual: float, given: float | None = None) -> float:
    """Return the seconds that a call may take: those given, or else the usual ones.

    Raises:
        ConfigError: if it is not a number, or negative or NaN.
    """
    seconds = usual if given is None else given
    if isinstance(seconds, bool) or not isinstance(seconds, Real) or not seconds >= 0:  # NaN is no duration either
        raise ConfigError(f"got deadline_s={seconds!r}, expected 0 or more seconds: give the time that a call may take")
    return seconds


def at_least_one(**named: int) -> int:
    """Return the argument, whose name is given with it.

    Raises:
        ConfigError: if the argument is not a whole number, or less than 1.
    """
    [(name, given)] = named.items()
    if isinstance(given, bool) or not isinstance(given, int) or given < 1:
        raise ConfigError(f"got {name}={given!r}, expected a whole number from 1")
    return given


def of_kind(kind: type[T], **named: T | None) -> T | None:
    """Return the argument, whose name is given with it.

    Raises:
        ConfigError: if the argument is neither None nor of this kind.
    """
    [(name, given)] = named.items()
    if given is not None and not isinstance(given, kind):
        raise ConfigError(f"got {name}={given!r}, expected {kind.__name__}: see help(blora.client.{kind.__name__})")
    return given


def question(asked: str | Messages, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request: a prompt or a chat, and the fields that are not None.

    Raises:
        RefusedError: if it is neither a text nor a chat, as None or NaN for an empty cell.
        ConfigError: if it is a body of a request, or if a message of the chat is a text, as in a list of questions.
    """
    if isinstance(asked, Mapping):
        raise ConfigError(
            f"got a {type(asked).__name__}, expected one text, or a chat as messages with role and content: give its "
            'fields as arguments, as in predict("Why?", choices=[...]), or put it into a list for predict_many'
        )
    form = {"prompt": asked} if isinstance(asked, str) else {"messages": _messages(asked)}
    return form | _filled(fields)


def with_fields(body: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the body of a request with further fields where it has none, or None, as of an empty cell."""
    return _filled(fields) | _filled(body)


def questions(asked: Iterable[T], max_in_flight: int) -> Iterator[T | ClientError]:
    """Return an iterator over questions that ends with a ClientError if reading the questions fails.

    Raises:
        ConfigError: if a single question is given, a text or a mapping; if a data frame is, which yields column names;
            or if `max_in_flight` is not a whole number from 1.
    """
    if isinstance(asked, str | bytes | Mapping):
        raise ConfigError(
            f"got a {type(asked).__name__} in place of the questions, expected a list or another iterable of them: ask "
            "one question by predict, or put it into a list"
        )
    columns = getattr(asked, "columns", None)
    if columns is not None and not callable(columns):  # a database's result, which yields rows, has it as a method
        raise ConfigError(
            f"got a {type(asked).__name__} with columns in place of the questions, expected its rows as dicts: pass "
            'df.to_dict("records") with pandas, df.to_dicts() with polars'
        )
    at_least_one(max_in_flight=max_in_flight)
    return _until_failure(asked)


def read_answer(response: httpx.Response, kind: type[A]) -> A:
    """Return the answer in a response.

    Raises:
        ClientError: if the response is an error; the subclass corresponds to it.
    """
    if response.status_code != httpx.codes.OK:
        raise _failure(response)
    try:
        return kind.model_validate_json(response.content)
    except ValidationError as exc:
        problem = exc.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, problem["loc"]))
        raise MalformedAnswerError(
            f"The answer from {response.url} is not a blora server's ({where or 'body'}: {problem['msg']}): check "
            "the address",
            status=response.status_code,
        ) from exc


def check(prediction: Prediction) -> Prediction:
    """Return the prediction, after checking that it is consistent.

    Raises:
        MalformedAnswerError: if the answer is not the leading choice, or null with reasons for an abstention; if the
            leading choice is not one of the choices, or not a likeliest one, or its probability not the confidence; if
            a choice comes twice; or if a score is out of its range.
    """
    answer, leader, abstained = prediction.answer, prediction.top_choice, prediction.abstained
    n_reasons = len(prediction.abstain_reasons)
    known = any(entry.choice == leader for entry in prediction.probabilities)
    if not known or abstained != bool(n_reasons) or answer != (None if abstained else leader):
        raise MalformedAnswerError(
            f"The answer contradicts itself: answer={answer!r} and top_choice={leader!r}, which is "
            f"{'one' if known else 'none'} of the choices, with abstained={abstained} and {n_reasons} reasons to "
            "abstain; do not act on it"
        )
    likely = {entry.choice: entry.probability for entry in prediction.probabilities}
    distinct = len(likely) == len(prediction.probabilities)
    most, confidence = max(likely.values()), prediction.confidence
    if not distinct or max(abs(most - likely[leader]), abs(most - confidence)) > TOLERANCE:
        raise MalformedAnswerError(
            f"The answer contradicts itself: top_choice={leader!r} has the probability {likely[leader]} with "
            f"confidence={confidence}, the likeliest choice {most}, and the choices are "
            f"{'distinct' if distinct else 'not distinct'}; do not act on it"
        )
    for score in TABLE:
        value = getattr(prediction, score.name)
        if value is not None and not 0 <= value <= score.greatest:
            raise MalformedAnswerError(
                f"The answer contradicts itself: got {score.name}={value}, expected 0 to {score.greatest:g}; do not "
                "act on it"
            )
    return prediction


def _messages(given: Messages) -> list[dict[str, str]]:
    try:
        return list(map(_message, given))
    except (TypeError, ValueError) as exc:
        raise RefusedError(
            f"got the question {given!r:.80}, expected a text, or a chat as messages with role and content: leave out "
            "questions that are empty, such as None or NaN"
        ) from exc


def _message(given: Mapping[str, str]) -> dict[str, str]:
    if isinstance(given, str):
        raise ConfigError(
            "got a list of texts, expected one text, or a chat as messages with role and content: ask several "
            "questions by predict_many"
        )
    return dict(given)


def _until_failure(asked: Iterable[T]) -> Iterator[T | ClientError]:
    try:
        yield from asked
    except Exception as exc:
        failure = ClientError(
            f"got {exc!r} while reading the questions, expected the next question or the end: the questions before "
            "this place were asked; ask the others again"
        )
        failure.__cause__ = exc
        yield failure


def kind_of(status: int) -> type[ClientError]:
    """Return the kind of error that the client raises for a status other than 200.

    >>> kind_of(429).__name__, kind_of(422).__name__, kind_of(503).__name__, kind_of(500).__name__
    ('OverloadedError', 'RefusedError', 'UnavailableError', 'FailedError')
    """
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return OverloadedError
    if status in _OUT_OF_SERVICE:
        return UnavailableError
    if httpx.codes.is_client_error(status):
        return RefusedError
    return FailedError if httpx.codes.is_server_error(status) else MalformedAnswerError


def _failure(response: httpx.Response) -> ClientError:
    status = response.status_code
    try:
        error = ErrorBody.model_validate_json(response.content).error
        message, code, param = error.message, error.code, error.param
    except ValidationError:  # an error page of a proxy
        message, code, param = f"{response.url} answered HTTP {status}", None, None
    return kind_of(status)(message, status=status, code=code, param=param, retry_after_s=_retry_after_s(response))


def _retry_after_s(response: httpx.Response) -> float | None:
    """Return the seconds from now until Retry-After, which a proxy may send as a date; None if it says neither."""
    value = response.headers.get("retry-after", "")
    try:
        seconds = float(value)
    except ValueError:
        try:
            date = parsedate_to_datetime(value)
            # A date without a zone is in GMT, as all dates of HTTP are.
            seconds = (date if date.tzinfo else date.replace(tzinfo=UTC)).timestamp() - time.time()
        except (ValueError, OverflowError):
            return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _filled(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return the fields that are not None."""
    return {name: value for name, value in fields.items() if value is not None}
