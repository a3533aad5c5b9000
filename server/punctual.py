"""Whoever takes too long to say what it wants is hung up on; else a few sockets that drip would hold all there are."""

import asyncio

import h11
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
        elif self._between_requests():  # the rest of a body whose request has been answered already
            self._stop()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _busy(self) -> bool:
        """Whether there is a request that has all its headers and not all its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def _between_requests(self) -> bool:
        """Whether at least one request is over, and no byte of the next one has come."""
        return self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

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
