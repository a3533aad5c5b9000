"""The image in a container, as docs/deploy.md starts it: read-only, without privileges, on a port of its own."""

import json
import os
import shlex
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx

from benchmarks.server_process import free_port

__all__ = ["Container", "inspect", "start"]

START_TIMEOUT_S = 180.0
# docs/deploy.md, "Run".
CONFINED = ("--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL", "--security-opt", "no-new-privileges")


def _engine() -> list[str]:
    """Return the command that runs containers: $CONTAINER, such as `podman --runtime runc`, or docker."""
    return shlex.split(os.environ.get("CONTAINER", "docker"))


def _run(*arguments: str) -> str:
    return subprocess.run([*_engine(), *arguments], check=True, capture_output=True, text=True).stdout.strip()


def inspect(image: str) -> dict[str, Any]:
    """Return an image's size in bytes, its labels and its user."""
    found: dict[str, Any] = json.loads(_run("image", "inspect", image))[0]
    return found


@dataclass(frozen=True, slots=True)
class Container:
    """A running container, its address, and how long after its start it lived and was ready, in seconds."""

    id: str
    url: str
    live_s: float
    ready_s: float

    def run(self, *command: str) -> "subprocess.CompletedProcess[str]":
        """Run a command in the container."""
        return subprocess.run(
            [*_engine(), "exec", self.id, *command], check=False, capture_output=True, text=True, timeout=60
        )

    def stop(self) -> int:
        """Send SIGTERM, wait, and return the server's exit code."""
        _run("stop", self.id)
        return int(_run("inspect", "--format", "{{.State.ExitCode}}", self.id))


@contextmanager
def start(image: str, **settings: str) -> Iterator[Container]:
    """Start the image, wait until it is ready, and remove the container at the end.

    Args:
        image: its name.
        settings: environment variables.
    """
    port = free_port()
    variables = [word for name, value in settings.items() for word in ("--env", f"{name}={value}")]
    published = ["--publish", f"127.0.0.1:{port}:8000", "--stop-timeout", "40"]
    began = time.monotonic()
    container = _run("run", "--detach", *published, *CONFINED, *variables, image)
    try:
        url = f"http://127.0.0.1:{port}"
        live = _first_success(container, f"{url}/livez") - began
        yield Container(container, url, live, _first_success(container, f"{url}/readyz") - began)
    finally:
        _run("rm", "--force", container)


def _first_success(container: str, url: str) -> float:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        try:
            if httpx.get(url).is_success:
                return time.monotonic()
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.05)
    logs = subprocess.run([*_engine(), "logs", container], check=False, capture_output=True, text=True)
    raise TimeoutError(f"{url} was not 200 after {START_TIMEOUT_S:g} s:\n{(logs.stdout + logs.stderr)[-3000:]}")
