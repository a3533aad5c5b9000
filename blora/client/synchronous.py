"""The client for code without asyncio: the other one, on an event loop in a thread of its own.

So both behave alike, a deadline ends a call however slowly the server drips, and threads may share a client.
"""

import asyncio
import inspect
import threading
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Mapping
from concurrent.futures import CancelledError
from types import TracebackType
from typing import Any, Self, TypeVar, overload

import httpx

from blora.client.answers import Prediction
from blora.client.asynchronous import AsyncClient
from blora.client.errors import ClientError
from blora.client.exchange import Messages
from blora.client.policies import AbstainPolicy
from blora.client.retries import Retries

__all__ = ["Client"]

T = TypeVar("T")


class Client:
    """Asks a blora server; one for the whole application, for it keeps connections.

    Args:
        url: of the server.
        api_key: sent as a bearer token.
        deadline_s: seconds that a call may take, its retries included.
        abstain: withholds answers beyond those that the server withholds.
        retries: when a request is sent again.
        max_connections: that are open at once; calls beyond it wait for one.
        transport: how requests travel, for tests.
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
        self._client = AsyncClient(
            url,
            api_key=api_key,
            deadline_s=deadline_s,
            abstain=abstain,
            retries=retries,
            max_connections=max_connections,
            transport=transport,
        )
        self._lock = threading.Lock()
        self._closed = False
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="blora-client", daemon=True)
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the connections and ends calls of other threads; the client is of no use afterwards."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            ending = asyncio.run_coroutine_threadsafe(self._end(), self._loop)
        ending.result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

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
        """See AsyncClient.predict; `on_abstain` is called in the caller's thread, and may be async."""
        prediction = self._run(self._client.predict(asked, deadline_s=deadline_s, **fields))
        if on_abstain is None or not prediction.abstained:
            return prediction
        result = on_abstain(prediction)
        return self._run(_awaited(result)) if inspect.isawaitable(result) else result

    def predict_many(
        self,
        asked: Iterable[str | Messages | Mapping[str, Any]],
        *,
        max_in_flight: int = 16,
        deadline_s: float | None = None,
        **fields: Any,
    ) -> list[Prediction | ClientError]:
        """See AsyncClient.predict_many."""
        return self._run(self._client.predict_many(asked, max_in_flight=max_in_flight, deadline_s=deadline_s, **fields))

    def feedback(self, prediction: Prediction | str, label: str, *, deadline_s: float | None = None) -> bool:
        """See AsyncClient.feedback."""
        return self._run(self._client.feedback(prediction, label, deadline_s=deadline_s))

    def ready(self, *, deadline_s: float = 1.0) -> bool:
        """Whether the server takes questions now."""
        return self._run(self._client.ready(deadline_s=deadline_s))

    async def _end(self) -> None:
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._client.aclose()

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        closed = ClientError("got a call on a client that was closed, expected an open one: make a new one")
        with self._lock:  # nothing is begun after the end
            if self._closed:
                work.close()
                raise closed
            future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except CancelledError:
            raise closed from None
        except BaseException:
            future.cancel()  # the caller was interrupted; a call that failed is over anyway
            raise


async def _awaited(result: Awaitable[T]) -> T:
    return await result
