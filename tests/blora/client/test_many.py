"""Many questions at once: their order, their bad ones, and where they are read from."""

import asyncio
import json
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from blora.client.answers import AbstainReason, Prediction
from blora.client.asynchronous import AsyncClient
from blora.client.errors import (
    ClientError,
    RefusedError,
)
from blora.client.policies import AbstainPolicy
from blora.client.synchronous import Client
from blora.errors import ConfigError
from tests.blora.client.predictions import body, led_by
from tests.blora.client.scripts import client_of, error, in_turn


async def test_many_questions_keep_their_order_and_a_bad_one_its_place() -> None:
    n_open, most = 0, 0

    async def script(request: httpx.Request) -> httpx.Response:
        nonlocal n_open, most
        n_open += 1
        most = max(most, n_open)
        asked = json.loads(request.content)
        await asyncio.sleep(0.002 * (int(asked["prompt"]) % 5))
        n_open -= 1
        return (
            error(422)
            if asked["prompt"] == "7"
            else httpx.Response(200, json=body(id=f"{asked['prompt']}/{asked['seed']}"))
        )

    asked: Iterator[str | dict[str, Any]] = ({"prompt": str(k), "seed": 5} if k == 3 else str(k) for k in range(40))
    async with AsyncClient("http://test", transport=httpx.MockTransport(script)) as client:
        found = await client.predict_many(asked, max_in_flight=4, seed=1)
    assert most == 4
    assert isinstance(found.pop(7), RefusedError)
    ids = [outcome.id for outcome in found if isinstance(outcome, Prediction)]
    assert ids == [f"{k}/{5 if k == 3 else 1}" for k in range(40) if k != 7]


async def test_an_empty_cell_of_a_body_takes_no_field_of_the_call_away() -> None:
    script, seen = in_turn(*[httpx.Response(200, json=body())] * 2)
    policy, other = {"min_confidence": 0.9}, {"min_confidence": 0.5}
    async with client_of(script) as client:
        await client.predict_many(
            [{"prompt": "a", "policy": None, "choices": None}, {"prompt": "b", "policy": other}],
            max_in_flight=1,
            policy=policy,
            seed=None,
        )
    assert [json.loads(request.content) for request in seen] == [
        {"prompt": "a", "policy": policy},
        {"prompt": "b", "policy": other},
    ]


@pytest.mark.parametrize("library", ["pandas", "polars"])
async def test_a_data_frame_is_refused_and_its_rows_are_answered(library: str) -> None:
    frame = pytest.importorskip(library).DataFrame({"prompt": ["refund", "log in"]})
    script, seen = in_turn(*[httpx.Response(200, json=body())] * 2)
    expected = r"got a DataFrame .*, expected its rows as dicts: pass df.to_dict\("
    async with client_of(script) as client:
        with pytest.raises(ConfigError, match=expected):
            await client.predict_many(frame)
        assert not seen
        await client.predict_many(frame.to_dict("records") if library == "pandas" else frame.to_dicts())
    assert [json.loads(request.content) for request in seen] == [{"prompt": "refund"}, {"prompt": "log in"}]


async def test_a_databases_result_with_a_method_for_columns_is_read() -> None:
    class Result(list[dict[str, Any]]):
        def columns(self, *names: str) -> None: ...

    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script) as client:
        [found] = await client.predict_many(Result([{"prompt": "refund"}]))
    assert isinstance(found, Prediction)
    assert len(seen) == 1


@pytest.mark.parametrize("asked", ["refund", b"refund", {"prompt": "refund"}])
async def test_one_question_is_not_many(asked: Any) -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    expected = (
        f"got a {type(asked).__name__} in place of the questions, expected a list .*: ask one question by predict"
    )
    async with client_of(script) as client:
        with pytest.raises(ConfigError, match=expected):
            await client.predict_many(asked)
    with (
        Client("http://test", transport=httpx.MockTransport(script)) as other,
        pytest.raises(ConfigError, match=expected),
    ):
        other.predict_many(asked)
    assert not seen


async def test_no_questions_have_no_answers() -> None:
    async with client_of(in_turn(error(500))[0]) as client:
        assert await client.predict_many([]) == []


@pytest.mark.parametrize(
    ("bad", "kind"),
    [
        ({"prompt": Path("why?")}, RefusedError),
        ({"prompt": "why?", "policy": {"min_confidence": np.float32(0.5)}}, RefusedError),
        ({"prompt": "why?", "seed": float("nan")}, RefusedError),
        ([Path("why?")], RefusedError),
        (None, RefusedError),
        (float("nan"), RefusedError),
    ],
)
@pytest.mark.parametrize("max_in_flight", [1, 3])
async def test_a_question_that_cannot_be_sent_takes_no_other_along(
    bad: Any, kind: type[ClientError], max_in_flight: int
) -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script) as client:
        found = await client.predict_many(["a", bad, "c"], max_in_flight=max_in_flight)
    assert [type(outcome) for outcome in found] == [Prediction, kind, Prediction]
    assert len(seen) == 2
    failure = found[1]
    assert isinstance(failure, ClientError)
    assert isinstance(failure.__cause__, TypeError | ValueError)


async def test_a_policy_that_fails_takes_no_other_answer_along() -> None:
    class Moody(AbstainPolicy):
        def reasons(self, prediction: Prediction) -> tuple[AbstainReason, ...]:
            if prediction.top_choice == "sales":
                raise ZeroDivisionError
            return ()

    leaders = (("billing", "sales"), ("sales", "billing"))
    script, _ = in_turn(*(httpx.Response(200, json=led_by(leader, other, 0.9)) for leader, other in leaders))
    async with client_of(script, abstain=Moody()) as client:
        answer, failure = await client.predict_many(["a", "b"], max_in_flight=1)
    assert isinstance(answer, Prediction)
    assert isinstance(failure, ClientError)
    assert isinstance(failure.__cause__, ZeroDivisionError)


class Failing:
    """Yields questions, fails once, and would go on."""

    def __init__(self) -> None:
        self.questions: Iterator[str | Exception] = iter(["a", "b", OSError("the disk is gone"), "d"])

    def __iter__(self) -> "Failing":
        return self

    def __next__(self) -> str:
        following = next(self.questions)
        if isinstance(following, Exception):
            raise following
        return following


@pytest.mark.parametrize("max_in_flight", [1, 2, 16])
async def test_questions_that_cannot_be_read_on_end_in_an_error_after_the_answers(max_in_flight: int) -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script) as client:
        found = await client.predict_many(Failing(), max_in_flight=max_in_flight)
    assert [type(outcome) for outcome in found] == [Prediction, Prediction, ClientError]
    assert len(seen) == 2
    failure = found[-1]
    assert isinstance(failure, ClientError)
    assert "the disk is gone" in str(failure)
    assert isinstance(failure.__cause__, OSError)


async def test_a_slow_source_of_questions_holds_up_no_question_in_flight() -> None:
    async def script(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(0.05)
        return httpx.Response(200, json=body())

    def source() -> Iterator[str]:
        for prompt in "abc":
            yield prompt
            time.sleep(0.6)  # longer than a question may take

    async with AsyncClient("http://test", transport=httpx.MockTransport(script)) as client:
        found = await client.predict_many(source(), deadline_s=0.4)
    assert [type(outcome) for outcome in found] == [Prediction] * 3


async def test_questions_are_read_in_one_thread_and_in_the_callers_context() -> None:
    tenant: ContextVar[str] = ContextVar("tenant")
    tenant.set("shop")
    script, seen = in_turn(httpx.Response(200, json=body()))

    def source() -> Iterator[str]:
        with closing(sqlite3.connect(":memory:")) as database:  # of use in this thread only
            for row in database.execute("VALUES ('a'), ('b'), ('c')"):
                yield tenant.get() + row[0]

    async with client_of(script) as client:
        found = await client.predict_many(source())
    assert [type(outcome) for outcome in found] == [Prediction] * 3
    assert {json.loads(request.content)["prompt"] for request in seen} == {"shopa", "shopb", "shopc"}


async def test_no_more_questions_are_read_than_are_in_flight() -> None:
    n_read, n_answered, most = 0, 0, 0

    def source() -> Iterator[str]:
        nonlocal n_read, most
        for k in range(30):
            n_read += 1
            most = max(most, n_read - n_answered)
            yield str(k)

    async def script(request: httpx.Request) -> httpx.Response:
        nonlocal n_answered
        await asyncio.sleep(0.001)
        n_answered += 1
        return httpx.Response(200, json=body())

    async with AsyncClient("http://test", transport=httpx.MockTransport(script)) as client:
        await client.predict_many(source(), max_in_flight=4)
    assert most == 4
