"""HTTP/1.1 with read timeouts, a limit on connections, and JSON error bodies for malformed requests."""

import asyncio
import logging
import uuid
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import h11
from starlette.responses import Response
from uvicorn.protocols.http.h11_impl import H11Protocol

from blora.server.errors import InvalidHttpError, ServerError, TooManyConnectionsError
from blora.server.http.middleware import SafeHeaders
from blora.server.http.reserve import Reserve
from blora.server.monitoring.logs import REQUEST_ID, ThrottledLogger

__all__ = ["limited_protocol"]

logger = logging.getLogger(__name__)

# Uvicorn warns of every malformed request and twice of every WebSocket request; operators can do nothing about either.
_uvicorn = logging.getLogger("blora.server.uvicorn")
_uvicorn.setLevel(logging.ERROR)


# Bytes of a pending response that a client has to read in each `read_timeout_s`.
_MIN_READ_BYTES = 65536
# Connections beyond the limit, for probes and Prometheus, and the seconds in which the request has to arrive on one.
_RESERVE = 16
_RESERVE_READ_S = 1.0


class _LimitedProtocol(H11Protocol):
    """HTTP/1.1 that closes connections of slow clients and limits the number of connections.

    All headers of a request have to arrive within `read_timeout_s` of its first byte or of the connection's start. A
    client that does not read its responses loses its connection as well.

    There are at most `max_connections`. A further connection replaces the one on which the server has waited longest
    for the client; if the server is working on a response for every connection, the further one joins a small reserve,
    where probes and Prometheus are answered and all other requests refused. In a full reserve a further connection
    replaces another one by the same rule.
    """

    read_timeout_s: float
    max_connections: int
    refuse: Callable[[ServerError], Response]
    throttled_log: ThrottledLogger
    reserve: set["_LimitedProtocol"]
    _limit: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None  # checks that the client has read more of a response
    _heard = 0.0  # time of the connection's start, or of the start or end of its latest request

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.logger = _uvicorn

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self._heard = self.loop.time()
        if len(self.connections) - len(self.reserve) > self.max_connections and not self._make_room():
            self._join_reserve()
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
        elif self._between_requests():  # the rest of a body arrived after its request was answered
            self._stop()
            self._unset_keepalive_if_required()
            self.timeout_keep_alive_task = self.loop.call_later(
                self.timeout_keep_alive, self.timeout_keep_alive_handler
            )

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        self._unwatch()
        self.reserve.discard(self)
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
        if self._busy():  # the body turned out malformed while the application was reading it
            self.cycle.disconnected = True
            self.cycle.message_event.set()
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self._answer(InvalidHttpError("The request is not well-formed HTTP/1.1: correct it."))
        else:
            self.transport.close()

    def _busy(self) -> bool:
        """Return whether a request is in progress: its headers are complete and its response is not."""
        return self.cycle is not None and not self.cycle.response_complete

    def _between_requests(self) -> bool:
        """Return whether a request has ended and no byte of the next one has arrived."""
        return self.cycle is not None and self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]

    def _waits_for_client(self) -> bool:
        """Return whether the server waits for the client to send or to read."""
        return not self._busy() or self.cycle.more_body or self.flow.write_paused

    def _make_room(self) -> bool:
        """Close the connection on which the server has waited longest for the client; return whether there was one."""
        longest = self._waited_for_longest(self.connections - self.reserve)
        if longest is None:
            return False
        self.connections.discard(longest)
        longest.transport.abort()  # abort, not close: an unread response would keep it open
        self.throttled_log.warning(
            f"Closed idle connections to make room: the limit of {self.max_connections} was reached"
        )
        return True

    def _waited_for_longest(self, connections: Iterable[asyncio.Protocol]) -> "_LimitedProtocol | None":
        """Return the other connection on which the server has waited longest for the client, if there is one."""
        others = (other for other in connections if isinstance(other, _LimitedProtocol) and other is not self)
        return min(
            (other for other in others if other._waits_for_client()), key=lambda other: other._heard, default=None
        )

    def _join_reserve(self) -> None:
        """Make this connection one of the reserve; if the reserve is full, refuse another one of it, or this one."""
        self.app = Reserve(self.app, lambda: self.refuse(self._too_many()))
        self.reserve.add(self)
        if len(self.reserve) > _RESERVE:
            leaving = self._waited_for_longest(self.reserve) or self
            leaving._leave_reserve()

    def _leave_reserve(self) -> None:
        """Refuse a request that has not arrived, or abort a connection whose client does not read."""
        self.reserve.discard(self)
        self.connections.discard(self)
        if self.conn.our_state is h11.IDLE:
            self._answer(self._too_many())
        else:
            self.transport.abort()

    def _too_many(self) -> TooManyConnectionsError:
        return TooManyConnectionsError(
            f"The server has {self.max_connections} connections and is answering all of them: try again later.",
            retry_after_s=1,
        )

    def _answer(self, error: ServerError) -> None:
        """Refuse a request that never reached the application, and close the connection."""
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
            limit_s = min(self.read_timeout_s, _RESERVE_READ_S) if self in self.reserve else self.read_timeout_s
            self._limit = self.loop.call_later(limit_s, self._hang_up)

    def _stop(self) -> None:
        if self._limit is not None:
            self._limit.cancel()
            self._limit = None

    def _watch_reading(self) -> None:
        """Abort the connection when the client reads a pending response too slowly."""
        self._unwatch()
        unread = self.transport.get_write_buffer_size()

        def check() -> None:
            left = self.transport.get_write_buffer_size()
            if left > max(0, unread - _MIN_READ_BYTES):
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
        if self in self.reserve:
            self._leave_reserve()
        else:
            self.transport.close()


def limited_protocol(
    *, read_timeout_s: float, max_connections: int, refuse: Callable[[ServerError], Response]
) -> type[asyncio.Protocol]:
    """Return an HTTP/1.1 protocol class for uvicorn with read timeouts and a limit on connections.

    Args:
        read_timeout_s: seconds for a request's headers to arrive, and for a client to read 64 KiB of a response.
        max_connections: most simultaneous connections, besides the reserve.
        refuse: counts an error and makes its response.
    """
    fields = {
        "read_timeout_s": read_timeout_s,
        "max_connections": max_connections,
        "refuse": staticmethod(refuse),
        "throttled_log": ThrottledLogger(logger),
        "reserve": set(),
    }
    return type("LimitedProtocol", (_LimitedProtocol,), fields)
