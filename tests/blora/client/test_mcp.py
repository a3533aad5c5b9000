"""`blora mcp`: the tool in process, with a scripted server behind it, and the command as a host starts it."""

import json
import os
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
import pytest
from mcp import Client, StdioServerParameters

from blora.client.mcp import server_of
from tests.blora.client.predictions import body, led_by, withheld
from tests.blora.client.scripts import client_of

Call = Callable[..., Any]


async def call(script: Callable[[httpx.Request], httpx.Response], arguments: dict[str, Any], **options: Any) -> Any:
    async with client_of(script) as client, Client(server_of(client, **options)) as host:
        return await host.call_tool("ask", arguments)


def answering(answer: dict[str, Any], seen: list[dict[str, Any]]) -> Callable[[httpx.Request], httpx.Response]:
    def script(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content))
        return httpx.Response(200, json=answer)

    return script


async def test_an_answer_comes_with_its_probability_and_its_promise() -> None:
    seen: list[dict[str, Any]] = []
    policy = {"min_confidence": 0.8, "target_risk": 0.05, "source": "adapter"}
    result = await call(answering(body(policy=policy), seen), {"question": "why?"})
    assert not result.is_error
    assert result.structured_content == {
        "answered": True,
        "answer": "billing",
        "explanation": "billing, with a probability of 0.9.",
        "probability": 0.9,
        "warnings": [],
        "promise": "The calibration proved that at most 0.05 of the answers to questions like its own are wrong.",
        "prediction_id": "pred_1",
        "adapter": "triage@sha256:1+sha256:2",
    }
    assert seen == [{"prompt": "why?"}]


@pytest.mark.parametrize(
    ("confidence", "told"),
    [(0.87654, "0.877"), (0.999, "0.999"), (0.99951, "more than 0.999"), (1.0, "more than 0.999")],
)
async def test_no_answer_is_told_as_certain(confidence: float, told: str) -> None:
    result = await call(answering(led_by("billing", "sales", confidence), []), {"question": "why?"})
    assert result.structured_content["explanation"] == f"billing, with a probability of {told}."


async def test_a_score_just_beyond_its_threshold_is_not_told_as_equal() -> None:
    reasons = [{"reason": "low_confidence", "value": 0.99951, "threshold": 0.9999}]
    result = await call(answering(withheld() | {"abstain_reasons": reasons}, []), {"question": "why?"})
    assert "lower (0.99951) than the threshold (0.9999)" in result.structured_content["explanation"]


async def test_an_abstention_says_why_and_names_no_choice() -> None:
    result = await call(answering(withheld(), []), {"question": "why?"})
    assert not result.is_error
    found = result.structured_content
    assert (found["answered"], found["answer"], found["probability"], found["promise"]) == (False, None, None, None)
    assert found["explanation"] == (
        "The model abstains, so there is no answer: the leader's probability is lower (0.9) than the threshold (0.95)."
    )
    assert "billing" not in json.dumps(found) + "".join(part.text for part in result.content)


@pytest.mark.parametrize("answer", [body, withheld])
async def test_warnings_are_told_by_name_and_in_words(answer: Call) -> None:
    plain = await call(answering(answer(), []), {"question": "why?"})
    warned = await call(answering(answer(warnings=["not_calibrated", "added_later"]), []), {"question": "why?"})
    assert warned.structured_content["warnings"] == ["not_calibrated", "added_later"]
    assert warned.structured_content["explanation"] == (
        f"{plain.structured_content['explanation']} Be cautious: not_calibrated (the calibration does not hold for the "
        "way the adapter is served, so nothing is proved about its threshold); added_later."
    )


async def test_choices_and_the_fields_of_the_command_reach_the_server() -> None:
    seen: list[dict[str, Any]] = []
    fields = {"adapter": "triage", "policy": {"min_confidence": 0.5}}
    await call(answering(body(), seen), {"question": "why?", "choices": ["billing", "sales"]}, fields=fields)
    assert seen == [{"prompt": "why?", "choices": ["billing", "sales"], **fields}]


async def test_a_failure_is_an_error_of_the_tool_and_no_answer() -> None:
    result = await call(lambda request: httpx.Response(422), {"question": "why?"})
    assert result.is_error
    assert "The question was not answered" in result.content[0].text


async def test_the_description_says_what_is_decided_and_what_an_abstention_means() -> None:
    script = answering(body(), [])
    async with client_of(script) as client, Client(server_of(client, about="Queue of a ticket.")) as host:
        [tool] = (await host.list_tools()).tools
    assert tool.name == "ask"
    assert tool.description is not None
    assert tool.description.startswith("Queue of a ticket. Choose one of several answers")
    assert "do not choose one yourself" in tool.description
    assert tool.input_schema["required"] == ["question"]
    assert tool.output_schema is not None
    assert "answered" in tool.output_schema["required"]


# The command


class Stub(BaseHTTPRequestHandler):
    """A blora server that abstains, and shows in its answer who asked."""

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing to standard error."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["content-length"])))
        known = self.headers["authorization"] == "Bearer blora-key"
        content = json.dumps(withheld() if known and asked["policy"] == {"min_confidence": 0.95} else {}).encode()
        self.send_response(200)
        self.send_header("content-length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)


@pytest.fixture
def url() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Stub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


async def test_a_host_starts_the_command_and_calls_the_tool(url: str) -> None:
    command = StdioServerParameters(
        command=sys.executable,
        args=["-m", "blora.cli", "mcp", "--url", url, "--min-confidence", "0.95"],
        env=dict(os.environ) | {"BLORA_API_KEY": "blora-key"},
    )
    async with Client(command) as host:
        result = await host.call_tool("ask", {"question": "why?"})
    assert result.structured_content is not None
    assert result.structured_content["answered"] is False
