"""Whoever takes too long to say what it wants is hung up on; else a few sockets that drip would hold all there are."""

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

__all__ = ["punctual"]


class _Punctual(H11Protocol):
    """HTTP/1.1 with a limit on the time from a request's first byte, or the connection's start, to its last header."""

    read_timeout_s: float
    _limit: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._start()

    def data_received(self, data: bytes) -> None:
        if not self._busy():
            self._start()
        super().data_received(data)
        if self._busy():
            self._stop()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _busy(self) -> bool:
        """Whether there is a request that has all its headers and not all its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def _start(self) -> None:
        if self._limit is None:
            self._limit = self.loop.call_later(self.read_timeout_s, self._hang_up)

    def _stop(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _hang_up(self) -> None:
        self._limit = None
        self.transport.close()


def punctual(read_timeout_s: float) -> type[asyncio.Protocol]:
    """HTTP/1.1 that hangs up on requests whose headers take more than `read_timeout_s` seconds."""
    return type("Punctual", (_Punctual,), {"read_timeout_s": read_timeout_s})
