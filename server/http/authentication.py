"""Authentication by API key and rate limits, applied before a byte of the request body is read."""

import math
import time
from collections.abc import Callable, Hashable, Set

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Receive, Scope, Send

from blora.server.errors import ForbiddenError, RateLimitedError, ServerError, UnauthorizedError
from blora.server.keys import KEY, Key, Keys, client_name

__all__ = ["KeyAuthentication", "RateLimiter", "owner"]

# Paths for probes, Prometheus and code generators; none of them shows a request or an adapter's contents.
OPEN = frozenset({"/livez", "/readyz", "/metrics", "/openapi.json"})


class RateLimiter:
    """A limit on the average requests per minute of each key; after a pause a key may send a minute's requests at once.

    Args:
        per_minute: average requests per minute and key; 0 for no limit.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_minute = per_minute
        self._clock = clock
        self._left: dict[str, tuple[float, float]] = {}  # by key: requests left, and the time of that count

    def take(self, name: str) -> None:
        """Count a request of a key.

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


class KeyAuthentication:
    """ASGI middleware that checks the key of each request, `authorization: Bearer KEY`, and its rate limit.

    Args:
        app: the wrapped ASGI application.
        keys: the accepted keys; with None every request is accepted, except changes of adapters.
        rate: the rate limit of each key.
        refuse: makes the response for an error.
        pages: paths of pages, which are open too: the page asks for the key.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Keys | None,
        rate: RateLimiter,
        refuse: Callable[[ServerError, Scope], Response],
        pages: Set[str] = frozenset(),
    ) -> None:
        self._app = app
        self._keys = keys
        self._rate = rate
        self._refuse = refuse
        self._open = OPEN | pages

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection."""
        if scope["type"] == "http" and scope["path"] not in self._open:
            try:
                self._admit(scope)
            except ServerError as error:
                await self._refuse(error, scope)(scope, receive, send)
                return
        await self._app(scope, receive, send)

    def _admit(self, scope: Scope) -> None:
        KEY.set(None)
        key = self._key(scope) if self._keys is not None else None
        KEY.set(key)
        if key is not None:
            self._rate.take(key.name)
        changes = scope["path"].startswith("/v1/adapters") and scope["method"] not in ("GET", "HEAD", "OPTIONS")
        if changes and (key is None or key.scope != "admin"):
            raise ForbiddenError("Only an admin's key may change adapters: make one with `blora key NAME --admin`.")

    def _key(self, scope: Scope) -> Key:
        assert self._keys is not None  # _admit has checked
        kind, _, presented = Headers(scope=scope).get("authorization", "").partition(" ")
        key = self._keys.find(presented.strip()) if kind.lower() == "bearer" else None
        if key is None:
            raise UnauthorizedError(
                "The request has no API key, or an unknown one: send it in the header `authorization: Bearer KEY`."
            )
        return key


def owner(scope: Scope) -> Hashable:
    """Return the owner of a request: the name of its key, or the peer's address on a server without keys."""
    peer = scope.get("client")
    return client_name() or (peer[0] if peer else None)
