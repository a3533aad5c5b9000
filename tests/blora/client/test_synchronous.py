"""The client without asyncio: as the other one, from any thread, and without torch."""

import asyncio
import gc
import os
import signal
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

from blora.client.answers import Prediction
from blora.client.errors import ClientError, DeadlineError, RefusedError
from blora.client.policies import AbstainBelow
from blora.client.synchronous import SLACK_S, Client
from blora.errors import ConfigError
from tests.blora.client import serving as servers
from tests.blora.client.predictions import body, withheld
from tests.blora.client.processes import in_a_process
from tests.blora.client.serving import Serving


def client_of(response: httpx.Response, **options: Any) -> Client:
    return Client("http://test", transport=httpx.MockTransport(lambda request: response), **options)


def test_a_question_is_answered() -> None:
    with client_of(httpx.Response(200, json=body())) as client:
        assert client.predict("why?").answer == "billing"
        assert client.ready()


def test_a_warning_of_a_newer_server_is_passed_on() -> None:
    with client_of(httpx.Response(200, json=body(warnings=["of_tomorrow"]))) as client:
        assert client.predict("why?").warnings == ["of_tomorrow"]


def test_an_exception_is_that_of_the_other_client() -> None:
    with client_of(httpx.Response(422)) as client, pytest.raises(RefusedError, match="HTTP 422"):
        client.predict("why?")


def test_a_list_of_texts_is_not_one_question() -> None:
    with client_of(httpx.Response(200, json=body())) as client, pytest.raises(ConfigError, match="by predict_many"):
        client.predict(["a", "b"])  # type: ignore[list-item]


@pytest.mark.parametrize("empty", [None, float("nan")])
def test_an_empty_cell_is_refused_as_an_empty_text_is(empty: Any) -> None:
    with client_of(httpx.Response(200, json=body())) as client, pytest.raises(RefusedError, match="got the question"):
        client.predict(empty)


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


def test_a_question_that_cannot_be_sent_takes_no_other_along() -> None:
    with client_of(httpx.Response(200, json=body())) as client:
        found = client.predict_many(["a", {"prompt": Path("b")}, "c"])
    assert [type(outcome) for outcome in found] == [Prediction, RefusedError, Prediction]


def test_questions_that_cannot_be_read_on_end_in_an_error_after_the_answers() -> None:
    def source() -> Iterator[str]:
        yield from "ab"
        raise OSError("the disk is gone")

    with client_of(httpx.Response(200, json=body())) as client:
        *answers, failure = client.predict_many(source())
    assert [type(answer) for answer in answers] == [Prediction] * 2
    assert isinstance(failure, ClientError)
    assert isinstance(failure.__cause__, OSError)


def test_questions_are_read_in_the_callers_thread_and_no_more_than_are_in_flight() -> None:
    n_read, n_answered, most, readers = 0, 0, 0, set()

    def source() -> Iterator[str]:
        nonlocal n_read, most
        for k in range(30):
            readers.add(threading.current_thread())
            n_read += 1
            most = max(most, n_read - n_answered)
            yield str(k)

    async def script(request: httpx.Request) -> httpx.Response:
        nonlocal n_answered
        await asyncio.sleep(0.001)
        n_answered += 1
        return httpx.Response(200, json=body())

    with Client("http://test", transport=httpx.MockTransport(script)) as client:
        found = client.predict_many(source(), max_in_flight=4)
    assert [type(outcome) for outcome in found] == [Prediction] * 30
    assert (most, readers) == (4, {threading.current_thread()})


def test_an_interrupt_while_questions_are_read_cancels_those_in_flight() -> None:
    cancelled = threading.Event()

    async def slow(request: httpx.Request) -> httpx.Response:
        try:
            await asyncio.sleep(60)
        finally:
            cancelled.set()
        return httpx.Response(200, json=body())

    def source() -> Iterator[str]:
        yield "a"
        time.sleep(0.1)
        raise KeyboardInterrupt

    with Client("http://test", transport=httpx.MockTransport(slow)) as client:
        with pytest.raises(KeyboardInterrupt):
            client.predict_many(source())
        assert cancelled.wait(5)


def test_nobody_asks_nothing_at_once() -> None:
    with (
        client_of(httpx.Response(200, json=body())) as client,
        pytest.raises(ConfigError, match="got max_in_flight=0, expected a whole number from 1"),
    ):
        client.predict_many(["a"], max_in_flight=0)


def test_an_address_that_is_none_of_a_web_server_is_refused_before_any_call() -> None:
    with pytest.raises(ConfigError, match="got the address 'ftp://host' of a server, expected http:// or https://"):
        Client("ftp://host")


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


def test_a_deadline_holds_though_another_call_holds_up_the_loop() -> None:
    held_up, free = threading.Event(), threading.Event()

    async def blocks(prediction: Prediction) -> None:
        held_up.set()
        free.wait(10)

    with client_of(httpx.Response(200, json=withheld())) as client, ThreadPoolExecutor(1) as pool:
        other = pool.submit(lambda: client.predict("why?", on_abstain=blocks))
        assert held_up.wait(5)
        began = time.monotonic()
        try:
            with pytest.raises(DeadlineError, match="within 0.2 s because the client's event loop is blocked"):
                client.predict("why?", deadline_s=0.2)
            assert 0.2 <= time.monotonic() - began < 0.2 + SLACK_S + 0.5
        finally:
            free.set()
        other.result(timeout=5)


def test_a_deadline_may_be_far_away() -> None:
    with client_of(httpx.Response(200, json=body())) as client:
        assert client.predict("why?", deadline_s=float("inf")).answer == "billing"


@pytest.mark.parametrize("deadline_s", [-1, float("nan")])
def test_a_deadline_that_is_no_time_is_refused_before_the_call(deadline_s: float) -> None:
    with client_of(httpx.Response(200, json=body())) as client:
        for call in (
            lambda: client.predict("why?", deadline_s=deadline_s),
            lambda: client.predict_many(["why?"], deadline_s=deadline_s),
            lambda: client.feedback("pred_1", "billing", deadline_s=deadline_s),
            lambda: client.ready(deadline_s=deadline_s),
        ):
            with pytest.raises(ConfigError, match=f"got deadline_s={deadline_s}, expected 0 or more seconds"):
                call()


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
        with pytest.raises(ClientError, match="client is closed"):
            asking.result(timeout=5)
    with pytest.raises(ClientError, match="client is closed"):
        client.predict("why?")


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


def test_a_client_that_is_dropped_ends_its_thread_and_closes_its_event_loop() -> None:
    others = set(threading.enumerate())
    client = client_of(httpx.Response(200, json=body()))
    client.predict("why?")
    [thread] = set(threading.enumerate()) - others
    del client
    gc.collect()
    thread.join(5)
    assert not thread.is_alive()
    gc.collect()  # an event loop that is still open would warn


# Processes


@pytest.fixture
def serving() -> Iterator[Serving]:
    with servers.serving() as server:
        yield server


def client_to(serving: Serving) -> Client:
    return Client(serving.url, deadline_s=5)


def in_a_fork(work: Callable[[], bool], limit_s: float = 10) -> bool:
    """What `work` returns in a forked process, which is killed at the limit."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # Python 3.12 warns of a fork beside threads
        child = os.fork()
    if child == 0:
        succeeded = False
        try:
            succeeded = work()
        finally:
            os._exit(0 if succeeded else 1)
    ends = time.monotonic() + limit_s
    while time.monotonic() < ends:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return status == 0
        time.sleep(0.02)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise TimeoutError(f"the forked process did not end in {limit_s} s")


needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")


@needs_fork
def test_forked_processes_share_a_client_but_no_connection(serving: Serving) -> None:
    with client_to(serving) as client:

        def work() -> bool:
            with client:
                return [client.predict("why?").answer for _ in range(2)] == ["billing"] * 2

        assert client.predict("why?").answer == "billing"
        assert in_a_fork(work)
        assert client.predict("why?").answer == "billing"
    first, *of_the_fork, last = serving.callers
    assert first == last
    assert len(of_the_fork) == 2
    assert len(set(of_the_fork) - {first}) == 1


@needs_fork
def test_a_client_without_a_call_yet_starts_in_each_process(serving: Serving) -> None:
    with client_to(serving) as client:
        assert in_a_fork(lambda: client.predict("why?").answer == "billing")
        assert client.predict("why?").answer == "billing"
    assert len(set(serving.callers)) == 2


@needs_fork
def test_a_fork_in_the_middle_of_a_call_leaves_the_call_alone(serving: Serving) -> None:
    serving.may_answer.clear()
    with client_to(serving) as client, ThreadPoolExecutor(1) as pool:
        asking = pool.submit(client.predict, "why?")
        while not serving.callers:
            time.sleep(0.01)

        def work() -> bool:
            client.close()
            gc.collect()
            return True

        assert in_a_fork(work)
        serving.may_answer.set()
        assert asking.result(timeout=5).answer == "billing"


@needs_fork
def test_a_client_that_a_forked_process_drops_leaves_the_event_loop_of_the_first_process_alone(
    serving: Serving,
) -> None:
    with client_to(serving) as client:
        client.predict("why?")
        assert client._worker is not None
        finalizer = client._worker._finalizer
        assert in_a_fork(lambda: not finalizer.alive)
        assert finalizer.alive


@needs_fork
def test_a_client_that_was_closed_stays_so_in_a_forked_process(serving: Serving) -> None:
    client = client_to(serving)
    client.close()

    def work() -> bool:
        with pytest.raises(ClientError, match="client is closed"):
            client.predict("why?")
        return True

    assert in_a_fork(work)
