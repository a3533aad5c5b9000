"""Calls that are in flight when their client closes, their caller gives up or their program ends."""

import asyncio

import pytest

from blora.client.asynchronous import AsyncClient
from blora.client.errors import ClientError
from tests.blora.client.predictions import body
from tests.blora.client.processes import in_a_process
from tests.blora.client.scripts import client_of, error, in_turn
from tests.blora.client.serving import Repeating, listening


class Silent:
    """A server that never answers, and its numbers of connections."""

    def __init__(self) -> None:
        self.n_accepted = 0
        self.n_open = 0
        self.is_full = asyncio.Event()

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_accepted += 1
        self.n_open += 1
        if self.n_open == 2:
            self.is_full.set()
        await reader.read(-1)  # until the client closes the connection
        self.n_open -= 1


async def test_closing_ends_the_calls_in_flight_and_those_that_wait_for_a_connection() -> None:
    server = Silent()
    async with listening(server) as url, asyncio.timeout(10):
        client = AsyncClient(url, max_connections=2)
        works = (
            *(client.predict(question) for question in "abc"),
            client.feedback("pred_1", "billing"),
            client.ready(deadline_s=30),
            client.predict_many(["d", "e"]),
        )
        calls = [asyncio.ensure_future(work) for work in works]
        await server.is_full.wait()
        await client.aclose()
        *outcomes, many = await asyncio.gather(*calls, return_exceptions=True)
        while server.n_open:
            await asyncio.sleep(0.01)
    assert isinstance(many, list)
    assert {(type(outcome), str(outcome)) for outcome in (*outcomes, *many)} == {
        (ClientError, "This client is closed: make a new one")
    }
    assert server.n_accepted == 2


async def test_calls_that_end_while_they_wait_for_a_connection_leave_it_to_the_next_one() -> None:
    server = Repeating(body(), wait_s=0.05)
    async with listening(server) as url, AsyncClient(url, max_connections=2) as client:
        for _ in range(5):
            deadlines = (0.01 * place for place in range(40))
            calls = (client.predict("why?", deadline_s=deadline_s) for deadline_s in deadlines)
            await asyncio.gather(*calls, return_exceptions=True)
        assert (await client.predict("why?", deadline_s=10)).answer == "billing"


async def test_closing_ends_a_call_between_two_tries() -> None:
    script, seen = in_turn(error(503, retry_after="60"))
    async with asyncio.timeout(10):
        client = client_of(script, deadline_s=120)
        call = asyncio.create_task(client.predict("why?"))
        while not seen:
            await asyncio.sleep(0.01)
        await client.aclose()
        with pytest.raises(ClientError, match="client is closed"):
            await call
    assert len(seen) == 1


async def test_a_call_that_its_caller_cancels_while_the_client_closes_is_cancelled() -> None:
    server = Silent()
    async with listening(server) as url, asyncio.timeout(10):
        client = AsyncClient(url, max_connections=2)
        given_up, other = (asyncio.create_task(client.predict(question)) for question in "ab")
        await server.is_full.wait()
        closing = asyncio.create_task(client.aclose())
        await asyncio.sleep(0)  # until the client ends its calls
        given_up.cancel()
        await closing
        with pytest.raises(asyncio.CancelledError):
            await given_up
        with pytest.raises(ClientError, match="client is closed"):
            await other


async def test_a_failure_of_the_transport_is_told_as_neither_end() -> None:
    script, _ = in_turn(TimeoutError(), RuntimeError("no"))
    async with client_of(script) as client:
        assert not await client.ready()
        with pytest.raises(RuntimeError, match="^no$"):
            await client.ready()


def test_a_source_of_questions_that_waits_does_not_keep_an_interrupted_program_alive() -> None:
    done = in_a_process(
        "import asyncio, signal, threading\n"
        "from blora.client import AsyncClient\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a program in the background ignores it
        "def source(loop):\n"
        "    loop.call_soon_threadsafe(signal.raise_signal, signal.SIGINT)\n"
        "    threading.Event().wait()\n"
        "    yield\n"
        "async def main():\n"
        "    await AsyncClient().predict_many(source(asyncio.get_running_loop()))\n"
        "try:\n"
        "    asyncio.run(main())\n"
        "except KeyboardInterrupt:\n"
        "    print('interrupted')"
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "interrupted\n", "")


def test_a_thread_that_outlives_the_main_thread_gets_errors_of_the_client() -> None:
    done = in_a_process(
        "import asyncio, threading\n"
        "from blora.client import AsyncClient, Client, UnreachableError\n"
        "client = Client('http://localhost:9')\n"
        "def late():\n"
        "    threading.main_thread().join()\n"
        "    for call in (lambda: client.predict('why?'), client.ready):\n"
        "        try:\n"
        "            call()\n"
        "        except UnreachableError as exc:\n"
        "            print(exc)\n"
        "    print(*asyncio.run(AsyncClient('http://localhost:9').predict_many(['why?'])))\n"
        "threading.Thread(target=late).start()"
    )
    assert (done.returncode, done.stderr) == (0, "")
    told = done.stdout.splitlines()
    assert len(told) == 3
    for line in told:
        assert "because the interpreter is ending, expected a call before the end of the main thread: let" in line
