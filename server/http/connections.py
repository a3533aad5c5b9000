"""HTTP/1.1 among strangers: time to say what one wants, room for newcomers, and one shape for every refusal."""

import asyncio
import logging
import uuid
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from blora.server.errors import InvalidHttpError, ServerError, TooManyConnectionsError
from blora.server.http.middleware import SafeHeaders
from blora.server.monitoring.logs import REQUEST_ID, Seldom

__all__ = ["punctual"]

logger = logging.getLogger(__name__)

# Uvicorn warns of each malformed request, and twice of each that asks for a WebSocket; neither is the operator's doing.
_uvicorn = logging.getLogger("blora.server.uvicorn")
_uvicorn.setLevel(logging.ERROR)


# Of what waits to be read by a client, it has to take so many bytes in each `read_timeout_s`.
_LEAST_READ = 65536


class _Punctual(H11Protocol):
    """HTTP/1.1 with a limit on the time from a request's first byte, or the connection's start, to its last header.

    A client that asks and does not read the answers is hung up on as well.

    There are at most `max_connections`. One more takes the place of that which has kept the server waiting longest; if
    all are being answered, it is refused.
    """

    read_timeout_s: float
    max_connections: int
    refuse: Callable[[ServerError], Response]
    seldom: Seldom
    _limit: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None  # when the client has to have read some more
    _heard = 0.0  # when the connection was made, or its latest request began or ended

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heard = self.loop.time()
        if len(self.connections) > self.max_connections and not self._make_room():
            self._answer(
                TooManyConnectionsError(
                    f"The server has {self.max_connections} connections and is answering all of them: try again later.",
                    retry_after_s=1,
                )
            )
            return
        self._start()

    def data_received(self, data: bytes) -> None:
        was_busy = self._busy()
        if not was_busy:
            self._start()
        super().data_received(data)
        if self._busy():
            self._stop()
            if not was_busy:
                self._heard = self.loop.time()
        elif self._between_requests():  # the rest of a body whose request has been answered already
            self._stop()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._unwatch()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._watch_reading()

    def resume_writing(self) -> None:
        self._unwatch()
        super().resume_writing()

    def on_response_complete(self) -> None:
        self._heard = self.loop.time()
        super().on_response_complete()
        if self.transport.get_write_buffer_size():
            self._watch_reading()

    def send_400_response(self, msg: str) -> None:
        if self._busy():  # a body that goes wrong while its request is being read
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer(InvalidHttpError("The request is not well-formed HTTP/1.1: correct it."))
        else:
            self.transport.close()

    def _busy(self) -> bool:
        """Return whether there is a request that has all its headers and not all its response."""
        return self.cycle is not None and not self.cycle.response_complete

    def _between_requests(self) -> bool:
        """Return whether at least one request is over, and no byte of the next one has come."""
        return self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _keeps_waiting(self) -> bool:
        """Return whether it is the client's turn to say something, or to read."""
        return not self._busy() or self.cycle.more_body or self.flow.write_paused

    def _make_room(self) -> bool:
        """Return whether another connection could be closed, the one that has kept the server waiting longest."""
        others = (other for other in self.connections if other is not self)
        waiting = [other for other in others if isinstance(other, _Punctual) and other._keeps_waiting()]
        if not waiting:
            return False
        longest = min(waiting, key=lambda other: other._heard)
        self.connections.discard(longest)
        longest.transport.abort()  # what it has not read by now it does not want
        self.seldom.warning(f"Closed idle connections to make room, for there are {self.max_connections}")
        return True

    def _answer(self, error: ServerError) -> None:
        """Refuses a request that never reached the application, and closes the connection."""
        request_id = uuid.uuid4().hex
        REQUEST_ID.set(request_id)
        response = self.refuse(error)
        headers = [
            *self.server_state.default_headers,
            *response.raw_headers,
            *((name.encode(), value.encode()) for name, value in SafeHeaders.HEADERS.items()),
            (b"x-request-id", request_id.encode()),
            (b"connection", b"close"),
        ]
        reason = HTTPStatus(response.status_code).phrase.encode()
        events = (
            h11.Response(status_code=response.status_code, headers=headers, reason=reason),
            h11.Data(data=bytes(response.body)),
            h11.EndOfMessage(),
        )
        for event in events:
            self.transport.write(self.conn.send(event) or b"")
        self.transport.close()

    def _start(self) -> None:
        if self._limit is None:
            self._limit = self.loop.call_later(self.read_timeout_s, self._hang_up)

    def _stop(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _watch_reading(self) -> None:
        """Hangs up unless the client takes enough of what waits for it, again and again until it has all."""
        self._unwatch()
        unread = self.transport.get_write_buffer_size()

        def check() -> None:
            left = self.transport.get_write_buffer_size()
            if left > max(0, unread - _LEAST_READ):
                self.transport.abort()
            elif left:
                self._watch_reading()

        self._reading = self.loop.call_later(self.read_timeout_s, check)

    def _unwatch(self) -> None:
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None

    def _hang_up(self) -> None:
        self._limit = None
        self.transport.close()


def punctual(
    *, read_timeout_s: float, max_connections: int, refuse: Callable[[ServerError], Response]
) -> type[asyncio.Protocol]:
    """HTTP/1.1 that hangs up on whoever is too slow to ask or to read, and has a limited number of connections.

    Args:
        read_timeout_s: seconds in which the headers have arrived, and some more of an answer has been read.
        max_connections: most connections at once.
        refuse: the response to an error, counted.
    """
    fields = {
        "read_timeout_s": read_timeout_s,
        "max_connections": max_connections,
        "refuse": staticmethod(refuse),
        "seldom": Seldom(logger),
    }
    return type("Punctual", (_Punctual,), fields)
