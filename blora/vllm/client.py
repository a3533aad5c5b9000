"""HTTP client of a running vLLM: loads LoRAs, and asks for log-probabilities or states of tokens under them.

Follows the API of vLLM 0.32 with --enable-lora and VLLM_ALLOW_RUNTIME_LORA_UPDATING=True. States come from one that
runs with --runner pooling --pooler-config.task token_embed, which gives no log-probabilities.
"""

import os
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext
from pathlib import Path
from typing import Any

import httpx
import torch
from torch import Tensor

from blora.client.sending import send
from blora.errors import ConfigError
from blora.vllm.turns import Turns

__all__ = ["Sending", "UnknownLoraError", "VllmClient", "VllmError", "VllmUnreachableError", "check_address"]

# The environment variable of the key that vLLM asks for, as of vLLM itself.
KEY = "VLLM_API_KEY"
# Two tries, because a kept-alive connection may have been lost.
_TRIES = 2
# Statuses of a proxy, or of a vLLM that is starting or ending.
_AWAY = frozenset({502, 503, 504})
FLOAT_BYTES = 4
# vLLM's limit for the tokens whose log-probabilities one request names.
MOST_TOKENS = 128

Sending = Callable[[], AbstractAsyncContextManager[None]]
"""Makes the context that is entered before a request and left after it; an exception cancels the request."""


class VllmError(Exception):
    """Failure of a request to vLLM, or an unexpected answer."""


class VllmUnreachableError(VllmError):
    """vLLM does not answer, for example while it starts."""


class UnknownLoraError(VllmError):
    """The LoRA is not loaded in vLLM, for example after a restart."""


class VllmClient:
    """Client of the vLLM at one address, with the key of VLLM_API_KEY, if there is one.

    Args:
        url: address of its OpenAI-compatible server.
        timeout_s: timeout of one request, in seconds.
        concurrency: most requests at the same time.

    Raises:
        ConfigError: if the address or the key is malformed.
    """

    def __init__(self, url: str, *, timeout_s: float, concurrency: int) -> None:
        check_address(url)
        # Connections stay open as long as vLLM keeps them, because each new one is proved. Their number is limited by
        # the turns alone, because a request that is cancelled while it waits in httpx takes a connection along.
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=concurrency, keepalive_expiry=None)
        # A transport of its own, because httpx would send prompts through a proxy that the environment names.
        transport = httpx.AsyncHTTPTransport(limits=limits)
        key = _key()
        headers = {"authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(base_url=url, timeout=timeout_s, transport=transport, headers=headers)
        self._turns = Turns(concurrency)
        self.connections = 0
        """Number of connections that were opened: more of them may lead to a vLLM that was started again."""
        self._unanswered_since: float | None = None

    @property
    def unanswered_s(self) -> float:
        """Seconds since the first request after the last answer, also of requests that were cancelled."""
        return time.monotonic() - self._unanswered_since if self._unanswered_since is not None else 0.0

    async def base_model(self) -> tuple[str, int]:
        """Return the name of the base model, and the most tokens that vLLM reads and writes for one request."""
        try:
            response = await self._http.get("/v1/models")
            _check_reached(response)
            models = response.json()["data"]
            name = next(str(model["id"]) for model in models if model.get("parent") is None)
            return name, min(int(model["max_model_len"]) for model in models if model.get("max_model_len") is not None)
        except (httpx.HTTPError, AttributeError, KeyError, StopIteration, TypeError, ValueError) as exc:
            raise VllmError(
                f"No vLLM answers at {self._http.base_url} ({type(exc).__name__}): start it, or correct --engine-url"
            ) from exc

    async def load(self, name: str, folder: Path) -> None:
        """Load a LoRA under a name; a loaded LoRA of that name is the same one, because names contain digests."""
        response = await self._post("/v1/load_lora_adapter", {"lora_name": name, "lora_path": str(folder)})
        if response.is_error and "already been loaded" not in response.text:
            raise VllmError(f"vLLM did not load {name}: it answered {_summary(response)}")

    async def unload(self, name: str) -> None:
        """Unload a LoRA, if it is loaded."""
        await self._post("/v1/unload_lora_adapter", {"lora_name": name})

    async def next_token(
        self, lora: str, prompt: Sequence[int], tokens: Sequence[int], sending: Sending = nullcontext
    ) -> list[float]:
        """Return the log-probabilities of single tokens after a prompt.

        Args:
            lora: the name of the LoRA.
            prompt: token ids of the prompt.
            tokens: token ids to score.
            sending: entered before each request and left after it; an exception that it raises cancels the request.
        """
        different = sorted(set(tokens))
        found: dict[int, float] = {}
        for start in range(0, len(different), MOST_TOKENS):
            some = different[start : start + MOST_TOKENS]
            asked = {"logprobs": 0, "logprob_token_ids": some, "return_tokens_as_token_ids": True}
            async with sending(), self._turns.together():
                choice = await self._complete(lora, prompt, asked)
            try:
                [given] = choice["logprobs"]["top_logprobs"]
                found |= {token: float(given[f"token_id:{token}"]) for token in some}
            except (KeyError, TypeError, ValueError) as exc:
                raise VllmError("vLLM left out log-probabilities that were asked for") from exc
        return [found[token] for token in tokens]

    async def continuation(
        self, lora: str, prompt: Sequence[int], tokens: Sequence[int], sending: Sending = nullcontext
    ) -> float:
        """Return the log-probability of a text after a prompt, summed over its tokens.

        No prompt is sent meanwhile: a prompt's log-probabilities beside other requests stop vLLM's engine on CPUs.
        """
        async with sending(), self._turns.alone():
            choice = await self._complete(lora, [*prompt, *tokens], {"prompt_logprobs": 0})
        try:
            read = choice["prompt_logprobs"][len(prompt) :]
            return sum(float(at[str(token)]["logprob"]) for at, token in zip(read, tokens, strict=True))
        except (KeyError, TypeError, ValueError) as exc:
            raise VllmError("vLLM left out a prompt's log-probabilities (prompt_logprobs)") from exc

    async def states(self, model: str, text: Sequence[int], width: int, sending: Sending = nullcontext) -> Tensor:
        """Return the states that enter the output head for every token of a text, (T, width) float32.

        Args:
            model: the name of a LoRA or of the base model.
            text: T token ids.
            width: number of values of a state.
            sending: entered before the request and left after it; an exception that it raises cancels the request.
        """
        form = {"encoding_format": "bytes_only", "embed_dtype": "float32", "endianness": "little"}
        asked = {"model": model, "input": list(text), "task": "token_embed", "use_activation": False, **form}
        async with sending(), self._turns.together():
            response = await self._post("/pooling", asked)
        _check(response, "states", "pooling --pooler-config.task token_embed")
        expected = FLOAT_BYTES * len(text) * width
        if len(response.content) != expected:
            raise VllmError(
                f"vLLM answered {len(response.content)} bytes in place of {expected}, the states of {len(text)} "
                "tokens: let vLLM serve the same base model"
            )
        return torch.frombuffer(bytearray(response.content), dtype=torch.float32).view(-1, width)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def _complete(self, lora: str, prompt: Sequence[int], asked: dict[str, Any]) -> dict[str, Any]:
        body = {"model": lora, "prompt": list(prompt), "max_tokens": 1, "temperature": 0, **asked}
        response = await self._post("/v1/completions", body)
        _check(response, "a completion", "generate")
        try:
            [choice] = response.json()["choices"]
        except (KeyError, TypeError, ValueError) as exc:
            raise VllmError(f"vLLM answered {_summary(response)} in place of a completion") from exc
        found: dict[str, Any] = choice
        return found

    async def _count(self, event: str, details: dict[str, Any]) -> None:
        """Count a connection once it is open; httpx calls this for every step of a request."""
        self.connections += event == "connection.connect_tcp.complete"

    async def _post(self, path: str, body: dict[str, Any]) -> httpx.Response:
        if self._unanswered_since is None:
            self._unanswered_since = time.monotonic()
        for attempt in range(1, _TRIES + 1):
            try:
                request = self._http.build_request("POST", path, json=body, extensions={"trace": self._count})
                response = await send(self._http, request)
                self._unanswered_since = None
                _check_reached(response)
                return response
            except httpx.HTTPError as exc:
                if attempt == _TRIES or isinstance(exc, httpx.TimeoutException):
                    raise VllmUnreachableError(
                        f"vLLM at {self._http.base_url} does not answer ({type(exc).__name__}): try again once it does"
                    ) from exc
        raise AssertionError("unreachable")


def check_address(url: str) -> None:
    """Check the form of vLLM's address.

    Raises:
        ConfigError: if it is malformed.
    """
    try:
        parsed = httpx.URL(url)
    except httpx.InvalidURL as exc:
        raise ConfigError(f"got --engine-url {url!r}, expected http://HOST:PORT ({exc})") from exc
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ConfigError(f"got --engine-url {url!r}, expected http://HOST:PORT: name the scheme and the host")


def _key() -> str:
    """Return the key for vLLM, empty for none."""
    key = os.environ.get(KEY, "").strip()
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"got a {KEY} with characters that no header can have, expected printable ASCII")
    return key


def _check_reached(response: httpx.Response) -> None:
    """Raise an error if vLLM asks for another key, or is not there yet."""
    if response.status_code == httpx.codes.UNAUTHORIZED:
        raise VllmError(f"vLLM does not accept the key (401): set {KEY} to the key that vLLM was started with")
    if response.status_code in _AWAY:
        raise VllmUnreachableError(f"vLLM answered {_summary(response)}: try again once it is ready")


def _check(response: httpx.Response, expected: str, runner: str) -> None:
    """Raise an error if vLLM refused a request."""
    if response.status_code == httpx.codes.NOT_FOUND:
        raise UnknownLoraError(
            f"vLLM answered {_summary(response)} in place of {expected}: it has no such LoRA loaded, or was started "
            f"without --runner {runner}"
        )
    if response.is_error:
        raise VllmError(f"vLLM answered {_summary(response)} in place of {expected}")


def _summary(response: httpx.Response) -> str:
    return f"{response.status_code} {response.text[:200]!r}"
