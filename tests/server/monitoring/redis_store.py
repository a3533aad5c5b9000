"""A real Redis for tests, and servers that share it."""

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
from redis import Redis
from redis.exceptions import AuthenticationError
from redis.exceptions import ConnectionError as NoConnection

from benchmarks.server_process import free_port
from tests.server.fakes import FakeEngine, Running, running
from tests.server.monitoring.test_feedback import CALIBRATED, tell

needs_redis = pytest.mark.skipif(
    shutil.which("redis-server") is None and "CI" not in os.environ,
    reason="redis-server is not installed; tests/programs.sh installs it on Debian",
)


class Store:
    """A Redis that can be stopped and started again."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._port = free_port()
        self.url = f"redis://127.0.0.1:{self._port}/0"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, *more: str) -> None:
        command = ["redis-server", "--port", str(self._port), "--bind", "127.0.0.1", "--save", "", "--dir", ".", *more]
        with (self._folder / "log").open("wb") as log:
            self._process = subprocess.Popen(command, cwd=self._folder, stdout=log, stderr=log)
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                with Redis.from_url(self.url) as client:
                    client.ping()
            except AuthenticationError:
                return
            except NoConnection:
                time.sleep(0.05)
            else:
                return
        raise TimeoutError("Redis did not start")

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def expiries(self) -> dict[str, int]:
        """Return every key with its remaining seconds."""
        with Redis.from_url(self.url, decode_responses=True) as client:
            return {key: client.ttl(key) for key in client.keys("*")}

    def contents(self) -> str:
        """Return every key with its value."""
        with Redis.from_url(self.url) as client:
            read = {b"hash": client.hgetall, b"string": client.get}
            return "".join(f"{key} {read[client.type(key)](key)}" for key in client.keys("*"))


def replica(store: Store, **settings: Any) -> Any:
    return running(FakeEngine(handles=(CALIBRATED,)), feedback_redis=store.url, **settings)


async def settled(server: Running, prediction_id: str, label: str) -> Any:
    """Report an outcome, repeatedly until the prediction has been written, since answers do not wait for that."""
    deadline = time.monotonic() + 5
    while (told := await tell(server, prediction_id, label)).status_code == 404 and time.monotonic() < deadline:
        pass
    return told
