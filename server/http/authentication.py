"""At the door: who asks, how often, and what they may; before a byte of the body is read."""

import math
import time
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from blora.server.errors import ForbiddenError, RateLimitedError, ServerError, UnauthorizedError
from blora.server.keys import CLIENT, KEY, Key, Keys

__all__ = ["Door", "Rate"]

# What probes, Prometheus and code generators read; none of it shows a request or an adapter's contents.
OPEN = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json"})


class Rate:
    """So many requests a minute for each key, all of which may come at once.

    Args:
        per_minute: 0 for no limit.
        clock: seconds, which never go back.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # requests left, and when that was so; one entry a key

    def take(self, name: str) -> None:
        """Counts a request.

        Raises:
            RateLimitedError: if the key has none left.
        """
        if not self._per_minute:
            return
        now = self._clock()
        left, since = self._left.get(name, (float(self._per_minute), now))
        left = min(self._per_minute, left + (now - since) * self._per_minute / 60)
        if left < 1:
            self._left[name] = left, now
            wait_s = math.ceil((1 - left) * 60 / self._per_minute)
            raise RateLimitedError(
                f"This key may send {self._per_minute} requests per minute and has sent more: try again in {wait_s} s.",
                retry_after_s=wait_s,
            )
        self._left[name] = left - 1, now


class Door:
    """Lets a request in by its key, `authorization: Bearer KEY`.

    Args:
        app: the app around which this stands.
        keys: who may ask; None: anyone may, but only ask.
        rate: how often.
        refuse: the response to an error of a request.
    """

    def __init__(
        self, app: ASGIApp, keys: Keys | None, rate: Rate, refuse: Callable[[ServerError, Scope], Response]
    ) -> None:
        self._app = app
        self._keys = keys
        self._rate = rate
        self._refuse = refuse

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serves one connection."""
        if scope["type"] == "http" and scope["path"] not in OPEN:
            try:
                self._admit(scope)
            except ServerError as error:
                await self._refuse(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        _came_with(None)
        key = self._key(scope) if self._keys is not None else None
        _came_with(key)
        if key is not None:
            self._rate.take(key.name)
        changes = scope["path"].startswith("/v1/adapters") and scope["method"] not in ("GET", "HEAD")
        if changes and (key is None or key.scope != "admin"):
            raise ForbiddenError("Only an admin's key may change adapters: make one with `blora key NAME --admin`.")

    def _key(self, scope: Scope) -> Key:
        assert self._keys is not None  # the caller looked
        kind, _, presented = Headers(scope=scope).get("authorization", "").partition(" ")
        key = self._keys.find(presented.strip()) if kind.lower() == "bearer" else None
        if key is None:
            raise UnauthorizedError(
                "The request has no API key, or an unknown one: send it in the header `authorization: Bearer KEY`."
            )
        return key


def _came_with(key: Key | None) -> None:
    KEY.set(key)
    CLIENT.set(key.name if key is not None else None)
