"""Servers on sockets: one that answers every question alike, and one that does anything else."""

import asyncio
import json
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx

from tests.blora.client.predictions import body


class Serving(ThreadingHTTPServer):
    """A server that keeps connections, and their callers' ports in the order of their questions."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Answering)
        self.callers: list[int] = []
        self.may_answer = threading.Event()
        self.may_answer.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class Answering(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Serving

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["content-length"]))
        self.server.callers.append(self.client_address[1])
        self.server.may_answer.wait(10)
        answer = httpx.Response(200, json=body()).content
        self.send_response(200)
        self.send_header("content-length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@contextmanager
def serving() -> Iterator[Serving]:
    with Serving() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@asynccontextmanager
async def listening(
    behaviour: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]],
) -> AsyncIterator[str]:
    """A server that does just that with every connection."""

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await behaviour(reader, writer)
        except (ConnectionError, asyncio.CancelledError):  # cancelled at the end of the test
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(handle, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()


class Repeating:
    """The behaviour of a server that gives each request one answer, and its number of open connections."""

    def __init__(self, answer: dict[str, Any], wait_s: float = 0.0) -> None:
        self.answer = json.dumps(answer).encode()
        self.wait_s = wait_s
        self.n_open = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.n_open += 1
        try:
            while True:
                header = await reader.readuntil(b"\r\n\r\n")
                [length] = re.findall(rb"content-length: (\d+)", header.lower())
                await reader.readexactly(int(length))
                await asyncio.sleep(self.wait_s)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(self.answer), self.answer))
        except asyncio.IncompleteReadError:  # the other end closed
            pass
        finally:
            self.n_open -= 1
