"""A real server under attack: its keys, its folders and its doors, and how it is asked."""

import json
import re
import shutil
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.server_process import ADAPTER, Server, serve
from blora.server.keys import line_of

__all__ = ["BOUND", "KEYS", "OTHER", "OWNER", "READ_TIMEOUT_S", "Case", "Target", "said", "statuses", "target"]

# Keys by name: an admin's, two that may ask, and one that is bound to an adapter that is not loaded.
OWNER, CLIENT, OTHER, BOUND = "the key of an owner", "the key of a client", "the key of another", "a bound key"
KEYS = [
    line_of("owner", "admin", OWNER),
    line_of("client", "predict", CLIENT),
    line_of("other", "predict", OTHER),
    line_of("bound", "predict", BOUND, ["elsewhere"]),
]
READ_TIMEOUT_S = 3
MAX_CONNECTIONS = 200
JSON = "application/json"


@dataclass(frozen=True, slots=True)
class Target:
    """A server, and what an attacker is given.

    Attributes:
        server: that runs.
        http: asks it with a client's key.
        folder: where its keys and its adapter root lie.
    """

    server: Server
    http: httpx.Client
    folder: Path

    @property
    def keys(self) -> Path:
        """The key file."""
        return self.folder / "keys"

    @property
    def root(self) -> Path:
        """The adapter root, whose folders are looked at every second."""
        return self.folder / "adapters"

    @property
    def address(self) -> tuple[str, int]:
        """Where it listens."""
        url = httpx.URL(self.server.url)
        return url.host, url.port or 80

    @property
    def handles(self) -> int:
        """Open files and sockets of the server."""
        return int(psutil.Process(self.server.process.pid).num_fds())

    def post(self, body: Any, *, path: str = "/v1/predict", key: str = CLIENT, **headers: str) -> httpx.Response:
        """Return the response to a body: bytes as they are, anything else as JSON."""
        content = body if isinstance(body, bytes) else json.dumps(body, ensure_ascii=False).encode()
        given = {"authorization": f"Bearer {key}", "content-type": JSON, **headers}
        return self.http.post(path, content=content, headers=given)

    def ask(self, **fields: Any) -> httpx.Response:
        """Return the response to a question."""
        return self.post({"prompt": "I was charged twice", **fields})

    def copy(self, name: str, spoil: Callable[[Path], Any] = lambda folder: None, *, source: Path = ADAPTER) -> str:
        """Put a spoiled copy of a good adapter where the server does not poll, and return its path below the root."""
        folder = self.root / ".copies" / name
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(source, folder)
        spoil(folder)
        return f".copies/{name}"

    def load(self, name: str, path: str) -> httpx.Response:
        """Return the response to an owner who loads an adapter."""
        return self.post({"name": name, "path": path}, path="/v1/adapters", key=OWNER)

    def unload(self, name: str) -> None:
        """Unload an adapter if it is loaded."""
        self.http.delete(f"/v1/adapters/{name}", headers={"authorization": f"Bearer {OWNER}"})

    def at_once(self, act: Callable[[int, httpx.Client], httpx.Response], n: int, key: str = CLIENT) -> Counter[str]:
        """Count what n requests of 20 clients get.

        Each thread has a client of its own: threads that share one may find a connection closed by another thread.

        Args:
            act: sends the request of a number with a client.
            n: number of requests.
            key: of all clients.
        """

        def client(first: int) -> Counter[str]:
            with _client(self.server, key) as http:
                return Counter(said(act(number, http)) for number in range(first, n, 20))

        with ThreadPoolExecutor(20) as pool:
            return sum(pool.map(client, range(20)), Counter[str]())

    def connect(self, *, receive_buffer: int | None = None) -> socket.socket:
        """Return a connection, with a small receive buffer for a client that does not read."""
        made = socket.socket()
        made.settimeout(3 * READ_TIMEOUT_S)
        if receive_buffer is not None:
            made.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        made.connect(self.address)
        return made

    def say(self, data: bytes, *, patience_s: float = 1.5 * READ_TIMEOUT_S) -> bytes:
        """Return the server's answer to bytes, until the connection closes or a timeout passes."""
        heard = b""
        with self.connect() as stream:
            stream.settimeout(patience_s)
            with suppress(OSError):
                stream.sendall(data)
            with suppress(OSError):
                while more := stream.recv(2**16):
                    heard += more
        return heard

    def metrics(self, name: str) -> float:
        """Return the sum of a metric's series."""
        lines = self.http.get("/metrics").text.splitlines()
        return sum(float(line.split()[-1]) for line in lines if line.partition("{")[0].split(" ")[0] == name)


@dataclass(frozen=True, slots=True)
class Case:
    """One attack.

    Attributes:
        family: of which it is one.
        name: what is sent or done, in words.
        expected: what may be seen.
        attack: does it, and returns what was seen.
        slow: whether it takes many seconds on a busy machine.
    """

    family: str
    name: str
    expected: tuple[str, ...]
    attack: Callable[[Target], str]
    slow: bool = False

    def slowly(self) -> "Case":
        """Return the attack, marked as slow."""
        return replace(self, slow=True)


def said(response: httpx.Response) -> str:
    """Return a response's status and error code in words."""
    try:
        code = response.json()["error"]["code"]
    except (ValueError, KeyError, TypeError):
        return str(response.status_code)
    return f"{response.status_code} {code}"


def statuses(heard: bytes) -> str:
    """Return the statuses of all responses, with the code of the last error."""
    found = re.findall(rb"HTTP/1\.1 (\d{3})", heard)
    codes = re.findall(rb'"code":"(\w+)"', heard)
    return b" ".join([*found, *codes[-1:]]).decode() or "closed"


@contextmanager
def target(folder: Path) -> Iterator[Target]:
    """Start a server with the demo's adapter, keys, and an adapter root that the server polls."""
    (folder / "adapters").mkdir()
    (folder / "keys").write_text("\n".join(KEYS) + "\n")
    flags = {
        "adapter_root": str(folder / "adapters"),
        "adapter_poll_s": "1",
        "adapter_load_timeout_s": "10",
        "api_keys": str(folder / "keys"),
        "default_adapter": "triage",
        "max_adapters": "6",
        "max_connections": str(MAX_CONNECTIONS),
        "read_timeout_s": str(READ_TIMEOUT_S),
        "timeout_s": "60",
    }
    with serve(folder / "log", **flags) as server, _client(server, CLIENT) as http:
        yield Target(server, http, folder)


def _client(server: Server, key: str) -> httpx.Client:
    headers = {"authorization": f"Bearer {key}"}
    limits = httpx.Limits(max_keepalive_connections=1)
    return httpx.Client(base_url=server.url, headers=headers, timeout=120, limits=limits)
