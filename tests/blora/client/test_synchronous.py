"""The client without asyncio: as the other one, from any thread, and without torch."""

import asyncio
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest

from blora.client.answers import Prediction
from blora.client.errors import ClientError, DeadlineError, RefusedError
from blora.client.policies import AbstainBelow
from blora.client.synchronous import Client
from tests.blora.client.predictions import body, withheld


def client_of(response: httpx.Response, **options: Any) -> Client:
    return Client("http://test", transport=httpx.MockTransport(lambda request: response), **options)


def test_a_question_is_answered() -> None:
    with client_of(httpx.Response(200, json=body())) as client:
        assert client.predict("why?").answer == "billing"
        assert client.ready()


def test_an_exception_is_that_of_the_other_client() -> None:
    with client_of(httpx.Response(422)) as client, pytest.raises(RefusedError, match="HTTP 422"):
        client.predict("why?")


async def aside(prediction: Prediction) -> str:
    await asyncio.sleep(0)
    return f"a person, about {prediction.top_choice}"


@pytest.mark.parametrize("fallback", [aside, lambda prediction: f"a person, about {prediction.top_choice}"])
def test_a_fallback_may_be_async_too(fallback: Any) -> None:
    with client_of(httpx.Response(200, json=withheld())) as client:
        assert client.predict("why?", on_abstain=fallback) == "a person, about billing"
    with client_of(httpx.Response(200, json=body()), abstain=AbstainBelow(0.95)) as client:
        assert client.predict("why?", on_abstain=fallback) == "a person, about billing"


def test_many_questions_come_back_in_order() -> None:
    with client_of(httpx.Response(200, json=body())) as client:
        found = client.predict_many(["a", "b", "c"])
    assert [type(outcome) for outcome in found] == [Prediction] * 3


def test_threads_share_a_client() -> None:
    with client_of(httpx.Response(200, json=body())) as client, ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda _: client.predict("why?").answer, range(50)))
    assert answers == ["billing"] * 50


async def test_it_works_where_a_loop_is_running_already() -> None:
    with client_of(httpx.Response(200, json=body())) as client:
        assert client.predict("why?").answer == "billing"


def test_a_deadline_holds() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return httpx.Response(200, json=body())

    began = time.monotonic()
    with (
        Client("http://test", transport=httpx.MockTransport(slow)) as client,
        pytest.raises(DeadlineError, match="in 0.2 s"),
    ):
        client.predict("why?", deadline_s=0.2)
    assert time.monotonic() - began < 1


def test_closing_twice_does_no_harm() -> None:
    client = client_of(httpx.Response(200, json=body()))
    client.close()
    client.close()


def test_closing_ends_the_calls_of_other_threads() -> None:
    async def slow(request: httpx.Request) -> httpx.Response:
        await asyncio.sleep(60)
        return httpx.Response(200, json=body())

    client = Client("http://test", transport=httpx.MockTransport(slow))
    with ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.predict, "why?")
        time.sleep(0.2)
        client.close()
        with pytest.raises(ClientError, match="a client that was closed"):
            asking.result(timeout=5)
    with pytest.raises(ClientError, match="a client that was closed"):
        client.predict("why?")


def in_a_process(code: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)


def test_it_needs_no_torch() -> None:
    done = in_a_process(
        "import sys, blora.client, blora.client.command\n"
        "heavy = {'torch', 'transformers', 'numpy', 'fastapi'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_a_client_that_nobody_closed_does_not_keep_the_program_alive() -> None:
    done = in_a_process("from blora.client import Client; client = Client(); print('done')")
    assert (done.returncode, done.stdout) == (0, "done\n")
