"""The client against a server whose behaviour is scripted, in process and on sockets that misbehave."""

import asyncio
import gc
import json
import re
import time
import traceback
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from blora.client.answers import Prediction
from blora.client.asynchronous import AsyncClient
from blora.client.errors import (
    ClientError,
    DeadlineError,
    FailedError,
    MalformedAnswerError,
    OverloadedError,
    RefusedError,
    UnavailableError,
    UnreachableError,
)
from blora.client.policies import AbstainBelow
from blora.client.retries import Retries
from blora.client.synchronous import Client
from blora.errors import ConfigError
from tests.blora.client.predictions import body, withheld
from tests.blora.client.scripts import FAST, SLACK_S, client_of, error, in_turn
from tests.blora.client.serving import listening, serving


async def test_a_question_goes_out_whole_and_comes_back_as_a_prediction() -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script, api_key="secret") as client:
        found = await client.predict("why?", adapter="triage", policy={"target_risk": 0.05})
    assert found.answer == "billing"
    [request] = seen
    assert json.loads(request.content) == {"prompt": "why?", "adapter": "triage", "policy": {"target_risk": 0.05}}
    assert (request.url.path, request.headers["authorization"]) == ("/v1/predict", "Bearer secret")


async def test_a_closed_client_says_so() -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script) as client:
        pass
    for call in (client.predict("why?"), client.feedback("pred_1", "billing"), client.ready()):
        with pytest.raises(ClientError, match="client is closed"):
            await call
    assert not seen


@pytest.mark.parametrize(
    "trouble",
    [*map(error, (408, 429, 502, 503, 504)), httpx.ConnectError("no"), httpx.ReadError("no")],
)
async def test_what_does_not_get_through_is_sent_again(trouble: httpx.Response | Exception) -> None:
    script, seen = in_turn(trouble, trouble, httpx.Response(200, json=body()))
    async with client_of(script) as client:
        assert (await client.predict("why?")).answer == "billing"
    assert len(seen) == 3
    assert len({request.content for request in seen}) == 1


@pytest.mark.parametrize(
    ("trouble", "kind"),
    [
        (error(429), OverloadedError),
        (error(503), UnavailableError),
        (error(504), UnavailableError),
        (httpx.ConnectError("no"), UnreachableError),
    ],
)
async def test_trouble_that_stays_is_named(trouble: httpx.Response | Exception, kind: type[ClientError]) -> None:
    script, seen = in_turn(trouble)
    async with client_of(script, retries=Retries(most=2, first_wait_s=0.01)) as client:
        with pytest.raises(kind):
            await client.predict("why?")
    assert len(seen) == 3


async def test_trouble_is_met_again_until_the_deadline() -> None:
    script, seen = in_turn(httpx.ConnectError("no"))
    async with client_of(script, retries=Retries(first_wait_s=0.01, longest_wait_s=0.01), deadline_s=1) as client:
        began = time.monotonic()
        with pytest.raises((UnreachableError, DeadlineError)) as info:
            await client.predict("why?")
        # The deadline may end a try; the error then has the trouble before it as its cause.
        assert isinstance(info.value, UnreachableError) or isinstance(info.value.__cause__, UnreachableError)
        assert 0.9 <= time.monotonic() - began < 1 + SLACK_S
    assert len(seen) > 11


@pytest.mark.parametrize(("status", "kind"), [(422, RefusedError), (404, RefusedError), (500, FailedError)])
async def test_what_would_end_the_same_way_is_sent_once(status: int, kind: type[ClientError]) -> None:
    script, seen = in_turn(error(status))
    async with client_of(script) as client:
        with pytest.raises(kind, match="got no luck"):
            await client.predict("why?")
    assert len(seen) == 1


async def test_the_servers_wait_is_honoured() -> None:
    script, _ = in_turn(error(429, retry_after="0.3"), httpx.Response(200, json=body()))
    async with client_of(script) as client:
        began = time.monotonic()
        await client.predict("why?")
        assert 0.3 <= time.monotonic() - began < 0.3 + SLACK_S


async def test_a_wait_beyond_the_deadline_is_not_begun() -> None:
    script, _ = in_turn(error(429, retry_after="60"))
    async with client_of(script, deadline_s=5) as client:
        began = time.monotonic()
        with pytest.raises(OverloadedError) as info:
            await client.predict("why?")
        assert time.monotonic() - began < SLACK_S
    assert info.value.retry_after_s == 60


async def test_a_try_that_outlasts_the_deadline_is_not_told_as_the_failure_before_it() -> None:
    n_tries = 0

    async def script(request: httpx.Request) -> httpx.Response:
        nonlocal n_tries
        n_tries += 1
        if n_tries > 1:
            await asyncio.sleep(60)
        return error(429)

    async with AsyncClient("http://test", transport=httpx.MockTransport(script), retries=FAST) as client:
        with pytest.raises(DeadlineError, match="gave no answer within 0.2 s") as info:
            await client.predict("why?", deadline_s=0.2)
    assert n_tries == 2
    assert isinstance(info.value.__cause__, OverloadedError)


@pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")  # connections of a loop that ended without aclose()
def test_each_event_loop_has_connections_of_its_own() -> None:
    async def many(client: AsyncClient) -> list[Prediction | ClientError]:
        found = await client.predict_many(["why?", "how?", "when?"], max_in_flight=1)
        await client.aclose()
        return found

    with serving() as server:
        client = AsyncClient(server.url, deadline_s=5)
        for _ in range(2):
            assert asyncio.run(client.predict("why?")).answer == "billing"
        assert [type(outcome) for outcome in asyncio.run(many(client))] == [Prediction] * 3
        with pytest.raises(ClientError, match="client is closed"):
            asyncio.run(client.predict("why?"))
        gc.collect()
    first, second, *of_many = server.callers
    assert len({first, second, *of_many}) == 3
    assert len(of_many) == 3


async def test_what_cannot_be_decoded_is_no_answer_and_takes_no_other_along() -> None:
    garbled = httpx.Response(200, headers={"content-encoding": "gzip"}, stream=httpx.ByteStream(b"no gzip"))
    script, _ = in_turn(httpx.Response(200, json=body()), garbled, httpx.Response(200, json=body()))
    async with client_of(script) as client:
        found = await client.predict_many(["a", "b", "c"], max_in_flight=1)
    assert [type(outcome) for outcome in found] == [Prediction, MalformedAnswerError, Prediction]


@pytest.mark.parametrize(
    "url",
    [
        *("ftp://host", "localhost:8000", "127.0.0.1:8000", "//host", "http://", ""),
        *("http://localhost:80o0", "http://[::1", "http://xn--/"),
    ],
)
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_an_address_that_is_none_of_a_web_server_is_refused_before_any_call(
    url: str, kind: type[AsyncClient | Client]
) -> None:
    expected = re.escape(f"got the address '{url}' of a server, expected http:// or https://")
    with pytest.raises(ConfigError, match=expected):
        kind(url)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize("url", ["http://host/v1", "https://host/below/v1/"])
def test_the_address_of_the_openai_protocol_is_not_the_servers(url: str, kind: type[AsyncClient | Client]) -> None:
    with pytest.raises(ConfigError, match=f"got the address '{url}', expected that of the server: leave /v1 out"):
        kind(url)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize(
    "url", ["http://host?key=pw", "http://host/below?", "http://host/#pw", "http://host/v1?key=pw"]
)
def test_an_address_with_a_query_or_fragment_is_refused_and_neither_shown(
    url: str, kind: type[AsyncClient | Client]
) -> None:
    with pytest.raises(ConfigError, match="got an address with a query or a fragment, expected none: leave") as info:
        kind(url)
    assert "pw" not in str(info.value)


@pytest.mark.parametrize("kind", [AsyncClient, Client])
@pytest.mark.parametrize(
    "url",
    ["http://joe:pw@host", "https://joe:pw@host/v1", "http://joe:pw@host:80o0", "ftp://joe:pw@host", "joe:pw@host"],
)
def test_an_address_with_a_password_is_refused_and_the_password_not_shown(
    url: str, kind: type[AsyncClient | Client]
) -> None:
    with pytest.raises(ConfigError, match="got .*host.*, expected") as info:
        kind(url, api_key="secret")
    shown = "".join(traceback.format_exception_only(info.value))
    assert "joe" not in shown
    assert "pw" not in shown


@pytest.mark.parametrize("deadline_s", [-1, float("nan"), "5", True])
@pytest.mark.parametrize("kind", [AsyncClient, Client])
async def test_a_deadline_that_is_no_time_is_refused(deadline_s: Any, kind: type[AsyncClient | Client]) -> None:
    expected = f"got deadline_s={deadline_s!r}, expected 0 or more seconds"
    with pytest.raises(ConfigError, match=expected):
        kind("http://host", deadline_s=deadline_s)
    async with client_of(in_turn(httpx.Response(200, json=body()))[0]) as client:
        for call in (
            client.predict("why?", deadline_s=deadline_s),
            client.predict_many(["why?"], deadline_s=deadline_s),
            client.feedback("pred_1", "billing", deadline_s=deadline_s),
            client.ready(deadline_s=deadline_s),
        ):
            with pytest.raises(ConfigError, match=expected):
                await call


@pytest.mark.parametrize(
    "options",
    [{"retries": 3}, {"abstain": 0.8}, {"max_connections": 0}, {"max_connections": 2.5}, {"max_connections": True}],
)
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_an_option_of_another_kind_is_refused_before_any_call(
    options: dict[str, Any], kind: type[AsyncClient | Client]
) -> None:
    [(name, value)] = options.items()
    with pytest.raises(ConfigError, match=f"got {name}={value}, expected"):
        kind(**options)


async def test_a_key_from_a_file_is_sent_without_its_newline() -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script, api_key=" secret\r\n") as client:
        await client.predict("why?")
    assert seen[0].headers["authorization"] == "Bearer secret"


@pytest.mark.parametrize("key", ["", "\n", "schlüssel", "two\nlines", "bell\a"])
@pytest.mark.parametrize("kind", [AsyncClient, Client])
def test_a_key_that_no_header_can_hold_is_refused_before_any_call_and_not_shown(
    key: str, kind: type[AsyncClient | Client]
) -> None:
    with pytest.raises(ConfigError, match="got an API key of .* expected printable ASCII") as info:
        kind("http://host", api_key=key)
    assert not key.strip() or key not in str(info.value)


async def test_a_request_that_breaks_http_is_sent_once_and_its_headers_are_not_shown() -> None:
    script, seen = in_turn(httpx.LocalProtocolError("Illegal header value b'Bearer secret'"))
    async with client_of(script) as client:
        with pytest.raises(RefusedError, match="was not sent: check") as info:
            await client.predict("why?")
    assert len(seen) == 1
    assert "secret" not in "".join(traceback.format_exception(info.value))


async def test_a_field_that_json_cannot_hold_is_refused_before_it_is_sent() -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script) as client:
        with pytest.raises(
            RefusedError, match="The request cannot be written as JSON .*Path.*: convert its fields to strings"
        ):
            await client.predict("why?", adapter=Path("triage"))
    assert seen == []


async def test_a_list_of_texts_is_not_one_question() -> None:
    script, seen = in_turn(httpx.Response(200, json=body()))
    async with client_of(script) as client:
        with pytest.raises(ConfigError, match="got a list of texts, expected one text, or a chat .* by predict_many"):
            await client.predict(["a", "b"])  # type: ignore[list-item]
        with pytest.raises(ConfigError, match="got a dict, expected one text, .* give its fields as arguments"):
            await client.predict({"prompt": "a"})  # type: ignore[arg-type]
    assert not seen


@pytest.mark.parametrize("most", [0, 2.5, "3", True, None])
async def test_nobody_asks_nothing_at_once(most: Any) -> None:
    async with client_of(in_turn(error(500))[0]) as client:
        with pytest.raises(ConfigError, match=f"got max_in_flight={most!r}, expected a whole number from 1"):
            await client.predict_many(["a"], max_in_flight=most)


# What an application does with abstentions


async def aside(prediction: Prediction) -> str:
    await asyncio.sleep(0)
    return f"a person, about {prediction.top_choice}"


@pytest.mark.parametrize("fallback", [aside, lambda prediction: f"a person, about {prediction.top_choice}"])
async def test_an_abstention_becomes_what_the_fallback_makes_of_it(
    fallback: Callable[[Prediction], str | Awaitable[str]],
) -> None:
    script, _ = in_turn(httpx.Response(200, json=withheld()), httpx.Response(200, json=body()))
    async with client_of(script) as client:
        assert await client.predict("why?", on_abstain=fallback) == "a person, about billing"
        sure = await client.predict("why?", on_abstain=fallback)
    assert isinstance(sure, Prediction)
    assert sure.answer == "billing"


async def test_the_clients_policy_comes_on_top() -> None:
    script, _ = in_turn(httpx.Response(200, json=body()))
    async with client_of(script, abstain=AbstainBelow(0.95)) as client:
        found = await client.predict("why?")
        assert (found.answer, found.abstained) == (None, True)
        assert await client.predict("why?", on_abstain=lambda prediction: prediction.confidence) == 0.9


# Sockets that misbehave


async def says_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.read(-1)


async def drips(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100000\r\n\r\n")
    while not reader.at_eof():
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.05)


async def hangs_up(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()


async def breaks_off(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: 1000\r\n\r\n{")
    await writer.drain()


async def talks_nonsense(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readline()
    writer.write(b"220 mail.example.org ESMTP\r\n")
    await writer.drain()


@pytest.mark.parametrize(
    ("behaviour", "kind"),
    [
        (says_nothing, DeadlineError),
        (drips, DeadlineError),
        (hangs_up, UnreachableError),
        (breaks_off, UnreachableError),
        (talks_nonsense, UnreachableError),
    ],
)
async def test_every_call_ends_by_its_deadline_in_a_named_exception(
    behaviour: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]], kind: type[ClientError]
) -> None:
    async with listening(behaviour) as url, AsyncClient(url, deadline_s=0.6, retries=FAST) as client:
        began = time.monotonic()
        with pytest.raises(kind):
            await client.predict("why?")
        assert time.monotonic() - began < 0.6 + SLACK_S
        assert not await client.ready(deadline_s=0.2)


async def test_a_call_that_is_cancelled_lets_go_of_its_connection() -> None:
    left = asyncio.Event()

    async def notices(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(-1)  # until the other end closes
        left.set()

    async with listening(notices) as url, AsyncClient(url) as client:
        call = asyncio.create_task(client.predict("why?"))
        await asyncio.sleep(0.1)
        call.cancel()
        async with asyncio.timeout(5):
            await left.wait()
