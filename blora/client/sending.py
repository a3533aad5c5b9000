"""Sending of a request that may be cancelled without loss of its connection.

httpcore loses a connection if a task is cancelled between two operations on the network, as when the connection has
just been assigned (https://github.com/encode/httpcore/issues/1093). A pool of which all connections were lost answers
no request any more.
"""

import asyncio
from functools import partial
from typing import Any

import httpx

__all__ = ["send"]

# Ends of the names of httpcore's trace events, at which an operation on the network begins.
OPERATIONS = (
    "connect_tcp.started",
    "connect_unix_socket.started",
    "start_tls.started",
    "send_request_headers.started",
    "send_request_body.started",
    "receive_response_headers.started",
    "receive_response_body.started",
)
# Seconds after which a request that begins no operation is cancelled all the same, as with a transport of a test.
PATIENCE_S = 0.1


async def send(http: httpx.AsyncClient, request: httpx.Request) -> httpx.Response:
    """Return the response, which has been read.

    A cancellation takes effect during the next operation on the network, or at the end of the request.

    Raises:
        httpx.RequestError: if there is no response.
    """
    in_operation = given_up = False
    loop = asyncio.get_running_loop()

    def cancel(*, at_once: bool = False) -> None:
        if (in_operation or at_once) and not sending.cancelling():
            sending.cancel()  # once, because a second time would break off the closing of the connection

    async def trace(event: str, details: dict[str, Any]) -> None:
        nonlocal in_operation
        if traced is not None:
            await traced(event, details)
        in_operation = event.endswith(OPERATIONS)
        if given_up:
            loop.call_soon(cancel)  # not now, because the operation may end without having waited

    traced = request.extensions.get("trace")
    request.extensions = {**request.extensions, "trace": trace}
    sending = asyncio.create_task(http.send(request))
    cancellation: asyncio.CancelledError | None = None
    while not sending.done():
        try:
            await asyncio.wait([sending])
        except asyncio.CancelledError as exc:
            cancellation, given_up = exc, True
            cancel()
            loop.call_later(PATIENCE_S, partial(cancel, at_once=True))
    if cancellation is not None:
        _ = sending.cancelled() or sending.exception()  # or asyncio would log an exception that nobody saw
        raise cancellation
    return sending.result()
