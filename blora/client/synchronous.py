"""The synchronous client: an AsyncClient on an event loop in a background thread.

So both clients behave alike. A deadline ends a call even if the server sends its response slowly. Threads may share a
client. Forked processes may too: each one starts its own thread and opens its own connections at its first call.
"""

import asyncio
import inspect
import math
import os
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from types import TracebackType
from typing import Any, Self, TypeVar, overload
from weakref import WeakSet, finalize

import httpx

from blora.client.answers import Prediction
from blora.client.asynchronous import AsyncClient
from blora.client.errors import ClientError, DeadlineError
from blora.client.exchange import Messages, closed, deadline, questions
from blora.client.policies import AbstainPolicy
from blora.client.retries import Retries

__all__ = ["Client"]

T = TypeVar("T")
SLACK_S = 1.0  # seconds after its deadline at which a call ends if the event loop is blocked


class _Worker:
    """An AsyncClient and the thread that runs its event loop.

    The thread ends when the worker is closed or its owner is garbage.
    """

    def __init__(self, client: AsyncClient, owner: "Client") -> None:
        self.client = client
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._serve, name="blora-client", daemon=True)
        self._thread.start()
        self._finalizer = finalize(owner, self.loop.call_soon_threadsafe, self.loop.stop)
        self._finalizer.atexit = False

    def close(self) -> None:
        """Cancel all calls, close the connections and wait for the end of the thread."""
        self.abandon()
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()

    def abandon(self) -> None:
        """Leave the thread alone even if the owner becomes garbage: after a fork, the parent process has the thread."""
        self._finalizer.detach()

    def _serve(self) -> None:
        try:
            self.loop.run_forever()
            self.loop.run_until_complete(self._end())
        finally:
            self.loop.close()

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self.client.aclose()


class Client:
    """Synchronous client of a blora server; use one for the whole application, since it keeps connections open.

    Args:
        url: address of the server, http:// or https://.
        api_key: API key, sent as a bearer token without surrounding whitespace.
        deadline_s: seconds that a call may take, including its retries.
        abstain: policy of further abstentions beside the server's.
        retries: policy of retries.
        max_connections: most open connections; further calls wait for one.
        transport: httpx transport, for tests; forked processes share it.

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
        self._make = partial(
            AsyncClient,
            url,
            api_key=api_key,
            deadline_s=deadline_s,
            abstain=abstain,
            retries=retries,
            max_connections=max_connections,
            transport=transport,
        )
        self._deadline_s = deadline_s
        self._closed = False
        self._lock = threading.Lock()
        self._client: AsyncClient | None = self._make()  # now, to refuse invalid arguments at once
        self._worker: _Worker | None = None
        _clients.add(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections and end the calls of other threads; calls on a closed client raise ClientError."""
        with self._lock:
            self._closed = True
            worker, self._worker = self._worker, None
        if worker is not None:
            worker.close()

    @overload
    def predict(
        self, asked: str | Messages, *, deadline_s: float | None = None, on_abstain: None = None, **fields: Any
    ) -> Prediction: ...

    @overload
    def predict(
        self,
        asked: str | Messages,
        *,
        deadline_s: float | None = None,
        on_abstain: Callable[[Prediction], T | Awaitable[T]],
        **fields: Any,
    ) -> Prediction | T: ...

    def predict(
        self,
        asked: str | Messages,
        *,
        deadline_s: float | None = None,
        on_abstain: Callable[[Prediction], Any] | None = None,
        **fields: Any,
    ) -> Any:
        """Ask one question, as AsyncClient.predict; `on_abstain` runs in the caller's thread and may be async."""
        prediction = self._run(lambda client: client.predict(asked, deadline_s=deadline_s, **fields), deadline_s)
        if on_abstain is None or not prediction.abstained:
            return prediction
        result = on_abstain(prediction)
        return self._result(self._begin(lambda _: _awaited(result))) if inspect.isawaitable(result) else result

    def predict_many(
        self,
        asked: Iterable[str | Messages | Mapping[str, Any]],
        *,
        max_in_flight: int = 16,
        deadline_s: float | None = None,
        **fields: Any,
    ) -> list[Prediction | ClientError]:
        """Ask many questions, as AsyncClient.predict_many; the questions are read in the caller's thread."""
        calls: list[Future[Prediction | ClientError]] = []
        waiting, seconds = questions(asked, max_in_flight), deadline(self._deadline_s, deadline_s)
        room = threading.Semaphore(max_in_flight - 1)  # for further calls beside the one that has just begun
        try:
            for one in waiting:
                call = self._begin(partial(AsyncClient._outcome, asked=one, fields=fields, deadline_s=seconds))
                call.add_done_callback(lambda _: room.release())
                calls.append(call)
                room.acquire()
            return [self._result(call) for call in calls]
        except BaseException:
            for call in calls:
                call.cancel()
            raise

    def feedback(
        self,
        prediction: Prediction | str,
        label: str | bool | int | None = None,
        *,
        none_of_these: bool = False,
        deadline_s: float | None = None,
    ) -> bool:
        """Report the outcome of an answer, as AsyncClient.feedback."""
        return self._run(
            lambda client: client.feedback(prediction, label, none_of_these=none_of_these, deadline_s=deadline_s),
            deadline_s,
        )

    def ready(self, *, deadline_s: float = 1.0) -> bool:
        """Return whether the server is ready to answer, as AsyncClient.ready."""
        return self._run(lambda client: client.ready(deadline_s=deadline_s), deadline_s)

    def _run(self, work: Callable[[AsyncClient], Coroutine[Any, Any, T]], deadline_s: float | None) -> T:
        seconds = deadline(self._deadline_s, deadline_s)
        return self._result(self._begin(work), seconds)

    def _begin(self, work: Callable[[AsyncClient], Coroutine[Any, Any, T]]) -> Future[T]:
        with self._lock:  # no call begins after close()
            if self._closed:
                raise closed()
            if self._worker is None:
                self._worker = _Worker(self._client or self._make(), owner=self)
            return asyncio.run_coroutine_threadsafe(work(self._worker.client), self._worker.loop)

    def _result(self, call: Future[T], deadline_s: float = math.inf) -> T:
        try:
            return call.result(min(deadline_s + SLACK_S, threading.TIMEOUT_MAX))
        except CancelledError:
            raise closed() from None
        except TimeoutError as exc:
            if not call.cancel():  # the call has ended in the meantime, perhaps with a TimeoutError
                return call.result()
            raise DeadlineError(
                f"There was no answer within {deadline_s:g} s because the client's event loop is blocked: do not "
                "block in an async `on_abstain`"
            ) from exc
        except BaseException:
            call.cancel()  # the caller was interrupted; cancelling a failed call does nothing
            raise

    def _detach(self) -> None:
        """Drop the thread and the connections, which belong to the parent process, after a fork."""
        self._lock = threading.Lock()  # another thread may have held the old lock at the fork
        if self._worker is not None:
            self._worker.abandon()
        self._client = self._worker = None


_clients: WeakSet[Client] = WeakSet()


def _detach_all() -> None:
    for client in _clients:
        client._detach()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_detach_all)


async def _awaited(result: Awaitable[T]) -> T:
    return await result
