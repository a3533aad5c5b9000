"""A stalled file system under a real server: predictions and other loads go on, and the log names the adapter."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server_process import free_port
from blora.server.keys import line_of
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import write_adapter

# Reading any file of a folder named "stalled" takes until the gate is gone, as on a network that has failed.
STALLING = """
import sys, time
from pathlib import Path
import blora.disk.files

real = blora.disk.files._check_regular

def stalling(found, file, advice):
    while "stalled" in str(file) and Path(sys.argv[1]).exists():
        time.sleep(0.05)
    real(found, file, advice)

blora.disk.files._check_regular = stalling
from blora.server.commands.serve import main
sys.exit(main(sys.argv[2:]))
"""
HEADERS = {"authorization": "Bearer key-of-ops"}
# Far more than a tiny adapter takes to load, even where the processor is shared.
DEADLINE_S = 8


@dataclass
class Stalling:
    """A server with a stalled folder below its adapter root."""

    url: str
    gate: Path
    log: Path

    def ask(self, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
        return httpx.request(method, f"{self.url}{path}", json=body, headers=HEADERS, timeout=120)

    def load(self, name: str) -> httpx.Response:
        return self.ask("PUT", f"/v1/adapters/{name}", {"path": name})

    def logged(self, *words: str) -> bool:
        return any(all(word in line for word in words) for line in self.log.read_text().splitlines())


def until(holds: Callable[[], bool], within_s: float = 120) -> None:
    deadline = time.monotonic() + within_s
    while not holds():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/livez").is_success
    except httpx.TransportError:
        return False  # not listening yet


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stalling")
    tiny_model().save_pretrained(folder / "tiny")
    tiny_tokenizer().save_pretrained(folder / "tiny")
    for seed, name in enumerate(("one", "root/good", "root/a-stalled", "root/other")):
        write_adapter(folder / name, folder / "tiny", seed=seed)
    (folder / "keys").write_text(line_of("ops", "admin", "key-of-ops") + "\n")
    return folder


@contextmanager
def stalling(folder: Path, log: Path, *flags: str) -> Iterator[Stalling]:
    """Start the server and wait until it listens."""
    gate = folder / "gate"
    gate.touch()
    given = [
        f"--base-model={folder / 'tiny'}",
        f"--adapter-root={folder / 'root'}",
        f"--api-keys={folder / 'keys'}",
        f"--adapter-load-timeout-s={DEADLINE_S}",
        *("--device=cpu", "--dtype=float32", *flags),
    ]
    port = free_port()
    with log.open("wb") as out:
        server = subprocess.Popen(
            [sys.executable, "-c", STALLING, str(gate), f"--port={port}", *given], stdout=out, stderr=out
        )
        try:
            url = f"http://127.0.0.1:{port}"
            until(lambda: answers(url))
            yield Stalling(url, gate, log)
        finally:
            server.kill()
            server.wait()


def test_predictions_and_other_loads_go_on_while_one_stalls(folder: Path, tmp_path: Path) -> None:
    with stalling(folder, tmp_path / "log", f"--adapters=one={folder / 'one'}") as server:
        until(lambda: server.ask("GET", "/readyz").is_success)
        stalled: list[httpx.Response] = []
        loading = threading.Thread(target=lambda: stalled.append(server.load("a-stalled")))
        loading.start()
        until(lambda: server.logged("adapter_loading", "adapter=a-stalled"))
        answered = 0
        assert server.load("good").status_code == 201
        while loading.is_alive():
            answer = server.ask("POST", "/v1/predict", {"prompt": "x", "adapter": ("one", "good")[answered % 2]})
            assert answer.status_code == 200
            answered += 1
        assert answered >= 10
        assert (stalled[0].status_code, stalled[0].json()["error"]["code"]) == (504, "adapter_stalled")
        assert server.logged("adapter_refused", "by=ops", "adapter=a-stalled", "code=adapter_stalled")
        assert server.load("other").status_code == 201
        assert server.load("a-stalled").status_code == 504  # its thread has not ended
        server.gate.unlink()
        until(lambda: server.logged("Reading adapter a-stalled ended after"))
        assert server.load("a-stalled").status_code == 201


def test_a_folder_that_stalls_does_not_keep_a_server_from_getting_ready(folder: Path, tmp_path: Path) -> None:
    with stalling(folder, tmp_path / "log", "--adapter-poll-s=0.2") as server:
        until(lambda: server.ask("GET", "/readyz").is_success)
        cards = server.ask("GET", "/v1/adapters").json()["data"]
        assert {"good", "other"} <= {card["name"] for card in cards}
        assert server.logged("adapter_loading", "by=folder watch", "adapter=a-stalled")
        until(lambda: server.logged("adapter_refused", "adapter=a-stalled", "code=adapter_stalled"))
        server.gate.unlink()
        until(lambda: server.ask("GET", "/v1/adapters/a-stalled").is_success)


def test_a_root_alone_starts_a_server_that_is_ready_with_its_first_adapter(folder: Path, tmp_path: Path) -> None:
    with stalling(folder, tmp_path / "log") as server:
        until(lambda: "No adapter is loaded yet" in server.log.read_text())
        unready = server.ask("GET", "/readyz")
        assert (unready.status_code, unready.json()["error"]["code"]) == (503, "not_ready")
        assert "No adapter is loaded" in unready.json()["error"]["message"]
        assert server.load("good").status_code == 201
        assert server.ask("GET", "/readyz").is_success
        assert server.ask("POST", "/v1/predict", {"prompt": "x"}).json()["adapter"]["name"] == "good"
        assert server.ask("DELETE", "/v1/adapters/good").status_code == 204
        assert server.ask("GET", "/readyz").status_code == 503
        assert server.load("other").status_code == 201
        assert server.ask("POST", "/v1/predict", {"prompt": "x"}).json()["adapter"]["name"] == "other"
