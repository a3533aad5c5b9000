"""A real `blora serve` with the demo adapter in a process of its own, for benchmarks and tests."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

__all__ = [
    "ADAPTER",
    "QUESTIONS",
    "ROOT",
    "TICKET",
    "TRIAGE",
    "Server",
    "demo",
    "environment",
    "free_port",
    "serve",
    "wait_for",
]

ROOT = Path(__file__).resolve().parent.parent
TRIAGE = ROOT / "examples" / "triage"
ADAPTER = TRIAGE / "adapter"
# The template of the demo's tickets.
TICKET = "Support ticket: {prompt}\nQueue:"
# The adapters of the demo's three questions, by the name of the question.
QUESTIONS = {"queue": ADAPTER, "urgent": TRIAGE / "adapter.urgent", "mood": TRIAGE / "adapter.mood"}
START_TIMEOUT_S = 180.0


def demo(adapters: Mapping[str, Path] = QUESTIONS) -> dict[str, str]:
    """Return the flags that serve an adapter for each of the demo's questions as one model named triage."""
    names = [("triage" if name == "queue" else f"triage.{name}", path) for name, path in adapters.items()]
    return {"adapters": ",".join(f"{name}={path}" for name, path in names), "default_adapter": "triage"}


@dataclass(frozen=True, slots=True)
class Server:
    """A running server: its address, its process, and the file that has its output."""

    url: str
    process: "subprocess.Popen[bytes]"
    log: Path

    @property
    def memory_mib(self) -> float:
        """Resident memory, in MiB."""
        return float(psutil.Process(self.process.pid).memory_info().rss) / 2**20


@contextmanager
def serve(log: Path, **flags: str) -> Iterator[Server]:
    """Start the server on a free port, wait until it is ready, and end it afterwards.

    Args:
        log: where its output goes.
        flags: of `blora serve`, with underscores.
    """
    given = {"adapters": f"triage={ADAPTER}", "port": str(free_port()), **flags}
    command = [sys.executable, "-m", "blora.cli", "serve"]
    command += [f"--{name.replace('_', '-')}={value}" for name, value in given.items()]
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment())
        server = Server(f"http://127.0.0.1:{given['port']}", process, log)
        try:
            wait_for(f"{server.url}/readyz", process, log, START_TIMEOUT_S)
            yield server
        finally:
            process.kill()
            process.wait()


def free_port() -> int:
    """Return a port of this machine on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        return int(free.getsockname()[1])


def environment() -> dict[str, str]:
    """Return this process's variables without blora's settings, which must not change what is measured."""
    return {name: value for name, value in os.environ.items() if not name.startswith("BLORA_") or "CACHE" in name}


def wait_for(url: str, process: "subprocess.Popen[bytes]", log: Path, timeout_s: float) -> None:
    """Wait until a process answers an address with success.

    Args:
        url: the address.
        process: the process.
        log: the file that has its output, for the error message.
        timeout_s: longest time to wait.

    Raises:
        RuntimeError: if the process ends before.
        TimeoutError: if it takes longer.
    """
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise RuntimeError(f"the server ended before it was ready:\n{_said(log)}")
        try:
            if httpx.get(url).is_success:
                return
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.2)
    raise TimeoutError(f"the server was not ready after {timeout_s:g} s:\n{_said(log)}")


def _said(log: Path) -> str:
    return log.read_text() if log.is_file() else f"nothing can be read from {log}"
