"""Clients of a server whose behaviour is scripted, in process."""

from collections.abc import Callable
from typing import Any

import httpx

from blora.client.asynchronous import AsyncClient
from blora.client.retries import Retries

FAST = Retries(most=10, first_wait_s=0.01, longest_wait_s=0.02)
SLACK_S = 0.5
Script = Callable[[httpx.Request], httpx.Response]


def client_of(script: Script, **options: Any) -> AsyncClient:
    return AsyncClient("http://test", transport=httpx.MockTransport(script), **{"retries": FAST, **options})


def error(status: int, **headers: str) -> httpx.Response:
    detail = {"message": "got no luck", "type": "t", "param": None, "code": "c"}
    return httpx.Response(status, json={"error": detail}, headers={k.replace("_", "-"): v for k, v in headers.items()})


def in_turn(*responses: httpx.Response | Exception) -> tuple[Script, list[httpx.Request]]:
    """A server that answers so, the last for ever, and what it was asked."""
    seen: list[httpx.Request] = []

    def script(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        outcome = responses[min(len(seen), len(responses)) - 1]
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    return script, seen
