"""Bodies that are sent, and what becomes of responses."""

import pickle
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import httpx
import pytest

from blora.client.answers import Prediction
from blora.client.errors import (
    ClientError,
    FailedError,
    MalformedAnswerError,
    OverloadedError,
    RefusedError,
    UnavailableError,
)
from blora.client.exchange import check, question, read_answer
from tests.blora.client.predictions import body, withheld


def response(status: int, json: Any = None, **options: Any) -> httpx.Response:
    return httpx.Response(status, json=json, request=httpx.Request("POST", "http://host/v1/predict"), **options)


def read_prediction(given: httpx.Response) -> Prediction:
    return check(read_answer(given, Prediction))


def test_a_prompt_and_a_chat_are_sent_as_such_without_what_is_not_set() -> None:
    fields = {"adapter": None, "n_samples": 4, "seed": 0}
    assert question("why?", fields) == {"prompt": "why?", "n_samples": 4, "seed": 0}
    turns = ({"role": "user", "content": "why?"},)
    assert question(turns, {}) == {"messages": [{"role": "user", "content": "why?"}]}


@pytest.mark.parametrize("asked", [None, float("nan"), 7, b"why?", [None], [["why?"]]])
def test_what_is_neither_a_text_nor_a_chat_is_refused(asked: Any) -> None:
    with pytest.raises(RefusedError, match=r"got the question .*, expected a text, or a chat .*: leave out") as info:
        question(asked, {})
    assert repr(asked) in str(info.value)


@pytest.mark.parametrize(
    ("message", "param", "told"),
    [
        ("There is no field of this name: remove it.", "adpter", "adpter: There is no field of this name: remove it."),
        ("There is no field of this name: remove it.", "i", "i: There is no field of this name: remove it."),
        (
            "got policy.target_risk=2, expected 0 to 1",
            "policy.target_risk",
            "got policy.target_risk=2, expected 0 to 1",
        ),
        ("got no text", None, "got no text"),
    ],
)
def test_a_refusal_names_the_field_once(message: str, param: str | None, told: str) -> None:
    error = {"message": message, "type": "some_error", "param": param, "code": "a_code"}
    with pytest.raises(RefusedError) as info:
        read_prediction(response(422, {"error": error}))
    assert (str(info.value), info.value.param) == (told, param)
    again = pickle.loads(pickle.dumps(info.value))
    assert (str(again), again.param) == (told, param)


def test_an_answer_is_read_and_what_a_newer_server_adds_is_not_minded() -> None:
    found = read_prediction(
        response(200, body(added_later=1, timing={"queue_ms": 1, "compute_ms": 2, "network_ms": 3}))
    )
    assert found.answer == "billing"
    assert [entry.probability for entry in found.probabilities] == [0.9, 0.1]
    assert read_prediction(response(200, withheld())).answer is None


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (401, RefusedError),
        (404, RefusedError),
        (408, UnavailableError),
        (422, RefusedError),
        (429, OverloadedError),
        (500, FailedError),
        (502, UnavailableError),
        (503, UnavailableError),
        (504, UnavailableError),
        (302, MalformedAnswerError),
        (204, MalformedAnswerError),
    ],
)
def test_every_status_has_its_exception(status: int, kind: type[ClientError]) -> None:
    error = {"message": "got x, expected y", "type": "some_error", "param": "choices", "code": "a_code"}
    with pytest.raises(kind, match="got x, expected y") as info:
        read_prediction(response(status, {"error": error}))
    assert type(info.value) is kind
    assert (info.value.status, info.value.code, info.value.param) == (status, "a_code", "choices")


def test_a_proxys_error_is_told_by_its_status() -> None:
    with pytest.raises(UnavailableError, match="http://host/v1/predict answered HTTP 502") as info:
        read_prediction(response(502, content=b"<html>Bad Gateway</html>"))
    assert (info.value.code, info.value.param, info.value.retry_after_s) == (None, None, None)


@pytest.fixture
def in_tokyo() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.usefixtures("in_tokyo")
@pytest.mark.parametrize(
    ("header", "expected"),
    [
        *(("3", 3.0), ("0.5", 0.5), ("-1", 0.0), ("soon", None), ("inf", None), ("nan", None)),
        *(("Wed, 21 Oct 2026 07:28:00 GMT", 60.0), ("Wed, 21 Oct 2026 07:26:00 GMT", 0.0)),
        *(("Wed Oct 21 07:28:00 2026", 60.0), ("Wed, 21 Oct 2026 09:28:00 +0200", 60.0)),
        *(("Wed, 21 Oct 99999999999 07:28:00 GMT", None), ("Wed, 21 Oct 2026 07:28:00 +99999999999999999999", None)),
    ],
)
def test_retry_after_is_seconds_or_a_date(header: str, expected: float | None, monkeypatch: pytest.MonkeyPatch) -> None:
    now = datetime(2026, 10, 21, 7, 27, tzinfo=UTC).timestamp()
    monkeypatch.setattr("blora.client.exchange.time.time", lambda: now)
    with pytest.raises(OverloadedError) as info:
        read_prediction(response(429, headers={"retry-after": header}))
    assert info.value.retry_after_s == expected


@pytest.mark.parametrize(
    "content",
    [b"", b"hello", b"{}", b'{"answer": "billing"}', httpx.Response(200, json=body(confidence="much")).content],
)
def test_what_is_no_answer_is_not_acted_on(content: bytes) -> None:
    with pytest.raises(MalformedAnswerError, match="not a blora server's"):
        read_prediction(response(200, content=content))


@pytest.mark.parametrize(
    "fields",
    [
        {"abstained": True},
        {"answer": None},
        {"answer": "sales"},
        {"answer": "zzz"},
        {"answer": "zzz", "top_choice": "zzz"},
        {"abstain_reasons": withheld()["abstain_reasons"]},
        {"answer": None, "abstained": True},
        {"confidence": 7.0},
        {"confidence": -0.1},
        {"confidence": 0.95},
        {"answer": "sales", "top_choice": "sales"},
        {"probabilities": 2 * body()["probabilities"]},
        {"mutual_information": -0.1},
        {"margin": 1.5},
    ],
)
def test_an_answer_that_contradicts_itself_is_not_acted_on(fields: dict[str, Any]) -> None:
    with pytest.raises(MalformedAnswerError, match="contradicts itself"):
        read_prediction(response(200, body(**fields)))


def test_a_number_that_is_none_is_not_acted_on() -> None:
    content = httpx.Response(200, json=body()).content.replace(b"0.325", b"NaN")
    with pytest.raises(MalformedAnswerError, match="predictive_entropy"):
        read_prediction(response(200, content=content))
