"""The client of vLLM: how it asks, and answers that are not what it asked for."""

import asyncio
import json
from contextlib import suppress
from typing import Any

import httpx
import pytest

from blora.errors import ConfigError
from blora.vllm.client import VllmClient, VllmError
from tests.blora.client.serving import Repeating, listening


async def test_many_tokens_are_asked_for_in_several_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[int] = []

    def answer(request: httpx.Request) -> httpx.Response:
        tokens = json.loads(request.content)["logprob_token_ids"]
        asked.append(len(tokens))
        found = {f"token_id:{token}": -float(token) for token in tokens}
        return httpx.Response(200, json={"choices": [{"logprobs": {"top_logprobs": [found]}}]})

    client = VllmClient("http://vllm", timeout_s=10, concurrency=3)
    monkeypatch.setattr(
        client, "_http", httpx.AsyncClient(base_url="http://vllm", transport=httpx.MockTransport(answer))
    )
    found = await client.next_token("x", [1], [*range(254, -1, -1)])
    assert found == [-float(token) for token in range(254, -1, -1)]
    assert sum(asked) == 255
    assert max(asked) <= 128  # vLLM's limit
    await client.close()


@pytest.mark.parametrize("url", ["", "localhost:8000", "vllm", "http://", "ftp://vllm:8000"])
def test_an_address_without_scheme_or_host_is_refused_before_anything_is_asked(url: str) -> None:
    with pytest.raises(ConfigError, match=r"expected http://HOST:PORT: name the scheme and the host"):
        VllmClient(url, timeout_s=10, concurrency=3)


async def test_no_more_requests_than_allowed_are_under_way() -> None:
    client, under_way, most = VllmClient("http://vllm", timeout_s=10, concurrency=3), 0, 0

    async def complete(lora: str, prompt: Any, asked: Any) -> dict[str, Any]:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return {"logprobs": {"top_logprobs": [{"token_id:1": -1.0}]}, "prompt_logprobs": [None, {"1": {"logprob": -1}}]}

    client._complete = complete  # type: ignore[method-assign]
    await asyncio.gather(*(client.next_token("x", [1], [1]) for _ in range(10)))
    assert most == 3
    await client.close()


async def test_no_other_request_is_under_way_beside_one_for_the_log_probabilities_of_a_prompt() -> None:
    client, under_way, beside = VllmClient("http://vllm", timeout_s=10, concurrency=3), 0, []

    async def complete(lora: str, prompt: Any, asked: Any) -> dict[str, Any]:
        nonlocal under_way
        under_way += 1
        try:
            for _ in range(3):
                beside.append((under_way, "prompt_logprobs" in asked))
                await asyncio.sleep(0.01)
        finally:
            under_way -= 1
        return {"logprobs": {"top_logprobs": [{"token_id:1": -1.0}]}, "prompt_logprobs": [None, {"1": {"logprob": -1}}]}

    client._complete = complete  # type: ignore[method-assign]
    ways = [client.next_token, client.continuation] * 5 + [client.next_token] * 3
    cancelled = asyncio.create_task(client.continuation("x", [1], [1]))
    asking = asyncio.gather(*(way("x", [1], [1]) for way in ways))
    await asyncio.sleep(0.005)
    cancelled.cancel()  # lets the next one in
    await asking
    assert {n for n, alone in beside if alone} == {1}
    assert max(n for n, alone in beside if not alone) > 1
    await client.close()


async def test_requests_are_sent_in_the_order_in_which_they_were_asked_for() -> None:
    client, sent = VllmClient("http://vllm", timeout_s=10, concurrency=2), list[str]()

    async def complete(lora: str, prompt: Any, asked: Any) -> dict[str, Any]:
        sent.append(lora)
        await asyncio.sleep(0.001)
        return {"logprobs": {"top_logprobs": [{"token_id:1": -1.0}]}, "prompt_logprobs": [None, {"1": {"logprob": -1}}]}

    client._complete = complete  # type: ignore[method-assign]
    ways = [*[client.next_token] * 8, client.continuation, client.next_token, client.continuation]
    await asyncio.gather(*(way(str(n), [1], [1]) for n, way in enumerate(ways)))
    assert sent == [str(n) for n in range(len(ways))]
    await client.close()


@pytest.mark.parametrize("odd", [{}, {"logprobs": None}, {"logprobs": {"top_logprobs": [{"token_id:9": -1.0}]}}])
async def test_an_answer_without_what_was_asked_is_an_error(odd: dict[str, Any]) -> None:
    client = VllmClient("http://vllm", timeout_s=10, concurrency=3)

    async def complete(lora: str, prompt: Any, asked: Any) -> dict[str, Any]:
        return odd

    client._complete = complete  # type: ignore[method-assign]
    with pytest.raises(VllmError, match="left out log-probabilities"):
        await client.next_token("x", [1], [1])
    await client.close()


@pytest.mark.parametrize("odd", [[1], "text", {"choices": None}, {"choices": [None]}, {"data": ["base"]}])
async def test_an_answer_that_is_not_vllms_is_an_error(odd: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    client = VllmClient("http://vllm", timeout_s=10, concurrency=3)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, json=odd))
    monkeypatch.setattr(client, "_http", httpx.AsyncClient(base_url="http://vllm", transport=transport))
    for asking in (client.next_token("x", [1], [1]), client.continuation("x", [1], [1]), client.base_model()):
        with pytest.raises(VllmError):
            await asking
    await client.close()


@pytest.mark.parametrize("n_bytes", [0, 4, 12, 512])
async def test_states_of_another_size_are_an_error(monkeypatch: pytest.MonkeyPatch, n_bytes: int) -> None:
    client = VllmClient("http://vllm", timeout_s=10, concurrency=3)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=bytes(n_bytes)))
    monkeypatch.setattr(client, "_http", httpx.AsyncClient(base_url="http://vllm", transport=transport))
    with pytest.raises(VllmError, match="bytes in place of 256, the states of 2 tokens: let vLLM serve the same"):
        await client.states("base", [1, 2], 32)
    await client.close()


async def test_a_vllm_that_asks_for_a_key_is_given_the_one_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        if request.headers.get("authorization") != "Bearer its-key":
            return httpx.Response(401, json={"error": "Unauthorized"})
        return httpx.Response(200, json={"data": [{"id": "base", "max_model_len": 512}], "choices": [{}]})

    monkeypatch.setattr(httpx, "AsyncHTTPTransport", lambda **_: httpx.MockTransport(answer))
    for key in ("", "another"):
        monkeypatch.setenv("VLLM_API_KEY", key)
        client = VllmClient("http://vllm", timeout_s=5, concurrency=1)
        with pytest.raises(VllmError, match="set VLLM_API_KEY to the key"):
            await client.base_model()
        with pytest.raises(VllmError, match="set VLLM_API_KEY to the key"):
            await client.states("base", [1], 8)
    monkeypatch.setenv("VLLM_API_KEY", "its-key")
    assert await VllmClient("http://vllm", timeout_s=5, concurrency=1).base_model() == ("base", 512)


def test_a_key_that_no_header_can_have_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "cl\u00e9")
    with pytest.raises(ConfigError, match="VLLM_API_KEY with characters"):
        VllmClient("http://vllm", timeout_s=5, concurrency=1)
    monkeypatch.setenv("VLLM_API_KEY", "of-a-file\n")
    assert VllmClient("http://vllm", timeout_s=5, concurrency=1)._http.headers["authorization"] == "Bearer of-a-file"


async def test_requests_whose_callers_leave_do_not_use_up_the_connections() -> None:
    server = Repeating({"choices": [{"logprobs": {"top_logprobs": [{"token_id:5": -1.0}]}}]})
    async with listening(server) as url:
        client = VllmClient(url, timeout_s=10, concurrency=2)
        for n_turns in (*range(60), *range(60)):
            call = asyncio.create_task(client.next_token("x", [1], [5]))
            for _ in range(n_turns):
                await asyncio.sleep(0)
            call.cancel()
            with suppress(asyncio.CancelledError):
                await call
        assert await client.next_token("x", [1], [5]) == [-1.0]
        assert server.n_open <= 2
        await client.close()
