"""The client for asyncio, on which the synchronous client is built."""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Iterable, Mapping
from contextlib import closing
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx

from blora.client.answers import Answer, Outcome, Prediction
from blora.client.connections import Connections
from blora.client.environment import certificates, through_proxies, tls_fault
from blora.client.errors import ClientError, DeadlineError, MalformedAnswerError, RefusedError, UnreachableError
from blora.client.exchange import (
    Messages,
    address,
    at_least_one,
    authorization,
    check,
    closed,
    deadline,
    of_kind,
    question,
    questions,
    read_answer,
    with_fields,
)
from blora.client.policies import AbstainPolicy
from blora.client.reading import Reader
from blora.client.retries import Retries

__all__ = ["AsyncClient"]

T = TypeVar("T")
A = TypeVar("A", bound=Answer)


class AsyncClient:
    """Asynchronous client of a blora server; use one for the whole application, since it keeps connections open.

    Each event loop that uses the client opens its own connections.

    Args:
        url: address of the server, http:// or https://.
        api_key: API key, sent as a bearer token without surrounding whitespace.
        deadline_s: seconds that a call may take, including its retries.
        abstain: policy of further abstentions beside the server's.
        retries: policy of retries.
        max_connections: most open connections of an event loop; further calls wait for one.
        transport: httpx transport, for tests; event loops share it.

    Raises:
        ConfigError: if the address is malformed, does not begin with http:// or https:// and a host, has a user name or
            password, a query or a fragment, or ends in /v1; if the API key is empty or is not printable ASCII; if the
            deadline is not 0 or more seconds; if `abstain`, `retries` or `max_connections` is of another kind; or if
            the environment names a proxy or certificates that cannot be used.
    """

    def __init__(
        self,
        url: str = "http://127.0.0.1:8000",
        *,
        api_key: str | None = None,
        deadline_s: float = 30.0,
        abstain: AbstainPolicy | None = None,
        retries: Retries | None = None,
        max_connections: int = 64,
        transport: httpx.AsyncBaseTransport | None = None,
    ) -> None:
        self._deadline_s = deadline(deadline_s)
        self._abstain = of_kind(AbstainPolicy, abstain=abstain)  # type: ignore[type-abstract]  # it makes none
        self._retries = of_kind(Retries, retries=retries) or Retries()
        self._max_connections = at_least_one(max_connections=max_connections)
        self._url = address(url)
        opened = partial(
            httpx.AsyncClient,
            base_url=self._url,
            headers=authorization(api_key),
            timeout=None,  # the deadline of a call applies instead
            limits=httpx.Limits(max_connections=None, max_keepalive_connections=max_connections),
            transport=transport,
            verify=certificates(),  # one for all event loops, because reading the certificates takes time
        )
        self._open = partial(through_proxies, opened)
        self._open()  # now, to refuse an invalid proxy in the environment at once
        self._http: dict[asyncio.AbstractEventLoop, Connections] = {}
        self._opening = threading.Lock()
        self._closed = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Close the connections of the running event loop; its calls in flight and all later ones raise ClientError."""
        self._closed = True
        connections = self._http.get(asyncio.get_running_loop())
        self._http = {}
        if connections is not None:
            await connections.aclose()

    @overload
    async def predict(
        self, asked: str | Messages, *, deadline_s: float | None = None, on_abstain: None = None, **fields: Any
    ) -> Prediction: ...

    @overload
    async def predict(
        self,
        asked: str | Messages,
        *,
        deadline_s: float | None = None,
        on_abstain: Callable[[Prediction], T | Awaitable[T]],
        **fields: Any,
    ) -> Prediction | T: ...

    async def predict(
        self,
        asked: str | Messages,
        *,
        deadline_s: float | None = None,
        on_abstain: Callable[[Prediction], Any] | None = None,
        **fields: Any,
    ) -> Any:
        """Return the answer to one question, or the result of `on_abstain` for an abstention.

        Args:
            asked: a prompt, or a chat as messages with role and content.
            deadline_s: seconds for this call; by default the client's.
            on_abstain: called with a prediction from which the server's or this client's policy abstains; its result,
                awaited if necessary, is returned in place of the prediction. The deadline does not cover it.
            fields: further fields of `POST /v1/predict`: adapter, choices, scoring, n_samples, seed, policy,
                return_samples.

        Raises:
            ClientError: if there is no answer by the deadline; the subclass says why. RefusedError also if `asked` is
                neither a text nor a chat, as None or NaN for an empty cell.
            ConfigError: if `asked` is a list of texts, or the deadline is not 0 or more seconds.
        """
        prediction = await self._ask(question(asked, fields), deadline(self._deadline_s, deadline_s))
        if on_abstain is None or not prediction.abstained:
            return prediction
        result = on_abstain(prediction)
        return await result if inspect.isawaitable(result) else result

    async def predict_many(
        self,
        asked: Iterable[str | Messages | Mapping[str, Any]],
        *,
        max_in_flight: int = 16,
        deadline_s: float | None = None,
        **fields: Any,
    ) -> list[Prediction | ClientError]:
        """Return the answers to many questions in order, with a ClientError in place of each missing answer.

        Any other exception, for example from the client's `abstain`, is the cause of the ClientError in the question's
        place. If reading the questions fails, the last entry is a ClientError with that cause.

        Args:
            asked: prompts, chats, or bodies of `POST /v1/predict`. They are read in a worker thread as they are sent,
                so that a slow source delays neither questions in flight nor their deadlines.
            max_in_flight: most questions in flight.
            deadline_s: seconds for each question from the time it is sent.
            fields: fields of all questions, as for `predict`; those of a body take precedence unless they are None.

        Raises:
            ConfigError: if `asked` is a single text or body, or a data frame, or the deadline is not 0 or more seconds.
        """
        seconds = deadline(self._deadline_s, deadline_s)
        found: dict[int, Prediction | ClientError] = {}
        reader = Reader(enumerate(questions(asked, max_in_flight)))

        async def work() -> None:  # all workers take questions from one iterator
            while (taken := await reader.take()) is not None:
                place, one = taken
                found[place] = await self._outcome(one, fields, seconds)

        with closing(reader):
            async with asyncio.TaskGroup() as group:
                for _ in range(max_in_flight):
                    group.create_task(work())
        return [found[place] for place in sorted(found)]

    async def ready(self, *, deadline_s: float = 1.0) -> bool:
        """Return whether the server is ready to answer.

        Raises:
            ClientError: if the client is closed; UnreachableError if the interpreter is ending.
            ConfigError: if the deadline is not 0 or more seconds.
        """
        seconds = deadline(deadline_s)
        connections = self._connections()
        try:
            async with asyncio.timeout(seconds), connections.call():
                return (await connections.send(connections.http.build_request("GET", "/readyz"))).is_success
        except (TimeoutError, httpx.RequestError):
            return False

    async def feedback(
        self,
        prediction: Prediction | str,
        label: str | bool | int | None = None,
        *,
        none_of_these: bool = False,
        deadline_s: float | None = None,
    ) -> bool:
        """Report the outcome of an answer to the server, and return whether the leading choice was right.

        Args:
            prediction: the answer, or its id.
            label: the right choice as offered, or the boolean or the level's number of a typed question; it replaces an
                earlier report.
            none_of_these: in place of a label, whether no offered choice is right.
            deadline_s: seconds for this call; by default the client's.

        Raises:
            ClientError: RefusedError if the server knows no such prediction of this client, or did not offer the
                label, or if there is neither a label nor `none_of_these`, or both.
            ConfigError: if the deadline is not 0 or more seconds.
        """
        prediction_id = prediction if isinstance(prediction, str) else prediction.id
        given = {"label": label, "none_of_these": none_of_these or None}
        outcome = {name: value for name, value in given.items() if value is not None}
        told = await self._exchange(
            "/v1/feedback",
            {"prediction_id": prediction_id} | outcome,
            Outcome,
            deadline(self._deadline_s, deadline_s),
        )
        return told.correct

    def _connections(self) -> Connections:
        """Return the connections of the running event loop, because a connection works in one loop only.

        Raises:
            ClientError: if the client is closed.
        """
        if self._closed:
            raise closed()
        loop = asyncio.get_running_loop()
        with self._opening:  # loops of several threads may make their first calls at the same time
            connections = self._http.get(loop)
            if connections is None:
                connections = Connections(self._open(), self._max_connections)
                in_use = {one: its for one, its in self._http.items() if not one.is_closed()}
                self._http = in_use | {loop: connections}  # a new dict, because `aclose` may be reading the old one
        return connections

    async def _outcome(
        self, asked: str | Messages | Mapping[str, Any] | ClientError, fields: dict[str, Any], deadline_s: float
    ) -> Prediction | ClientError:
        """Return the entry of one question in the result of `predict_many`."""
        if isinstance(asked, ClientError):
            return asked
        try:
            form = with_fields(asked, fields) if isinstance(asked, Mapping) else question(asked, fields)
            return await self._ask(form, deadline_s)
        except ClientError as failure:
            return failure
        except Exception as exc:
            unforeseen = ClientError(f"Asking this question failed unexpectedly: {exc!r}")
            unforeseen.__cause__ = exc
            return unforeseen

    async def _ask(self, body: dict[str, Any], deadline_s: float) -> Prediction:
        prediction = check(await self._exchange("/v1/predict", body, Prediction, deadline_s))
        return self._abstain.apply(prediction) if self._abstain is not None else prediction

    async def _exchange(self, path: str, body: dict[str, Any], kind: type[A], deadline_s: float) -> A:
        """Return the server's last response, after retries."""
        ends = asyncio.get_running_loop().time() + deadline_s
        n_tries = 0
        failure: ClientError | None = None
        async with self._connections().call():
            while True:
                n_tries += 1
                try:
                    async with asyncio.timeout_at(ends):
                        return await self._send(path, body, kind)
                except TimeoutError as exc:
                    raise DeadlineError(
                        f"{self._url} gave no answer within {deadline_s:g} s: allow more time, or reduce the work"
                    ) from failure or exc
                except ClientError as exc:
                    failure = exc
                wait_s = self._retries.wait_s(failure, n_tries)
                if wait_s is None or asyncio.get_running_loop().time() + wait_s >= ends:
                    raise failure
                await asyncio.sleep(wait_s)

    async def _send(self, path: str, body: dict[str, Any], kind: type[A]) -> A:
        connections = self._connections()
        try:
            request = connections.http.build_request("POST", path, json=body)
        except (TypeError, ValueError) as exc:
            raise RefusedError(
                f"The request cannot be written as JSON ({exc}): convert its fields to strings, finite numbers, lists "
                "and dicts"
            ) from exc
        try:
            response = await connections.send(request)
        except httpx.DecodingError as exc:
            raise MalformedAnswerError(
                f"The answer from {self._url} cannot be decoded ({exc}): check that a blora server is "
                "at this address, and any proxy in between"
            ) from exc
        except httpx.LocalProtocolError:
            # Without the cause, whose text may hold the API key.
            raise RefusedError(
                f"The request to {self._url} breaks the rules of HTTP and was not sent: check the client's "
                "address and API key"
            ) from None
        except httpx.RequestError as exc:
            if (fault := tls_fault(exc)) is not None:
                raise RefusedError(f"{self._url} {fault}") from exc
            raise UnreachableError(
                f"{self._url} cannot be reached, or closed the connection ({type(exc).__name__}: {exc}): "
                "check the address, and that the server runs"
            ) from exc
        return read_answer(response, kind)
