"""Malicious adapter folders on a real server, which refuses them with a reason and goes on answering."""

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.faults.tiny_server import KEY, tiny_server
from benchmarks.server_process import Server
from tests.blora.adapter.evil import EVIL

# What the largest of the folders' files takes, several times over; a bomb would take GiB.
MOST_MIB = 400


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evil")


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[Server]:
    with tiny_server(folder, log_level="info", max_batch_tokens="128") as running:
        for place, (spoil, _) in enumerate(EVIL.values()):
            evil = folder / "adapters" / f"evil-{place}"
            shutil.copytree(folder / "adapters" / "two", evil)
            spoil(evil)
        yield running


def ask(server: Server, method: str, path: str, body: dict[str, Any] | None = None) -> httpx.Response:
    headers = {"authorization": f"Bearer {KEY}"}
    return httpx.request(method, f"{server.url}{path}", json=body, headers=headers, timeout=60)


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_folder_is_refused_and_predictions_go_on(server: Server, folder: Path, name: str) -> None:
    place, before, began = list(EVIL).index(name), server.memory_mib, time.monotonic()
    response = ask(server, "PUT", "/v1/adapters/evil", {"path": f"evil-{place}"})
    error = response.json()["error"]
    leads_out = name.startswith("a device")
    assert (response.status_code, error["code"]) == ((403, "forbidden") if leads_out else (422, "invalid_adapter"))
    assert time.monotonic() - began < 30
    assert str(folder) not in error["message"]
    assert server.memory_mib - before < MOST_MIB
    assert ask(server, "POST", "/v1/predict", {"prompt": "x"}).status_code == 200
    line = [line for line in server.log.read_text().splitlines() if "adapter_refused" in line][-1]
    assert f"by=benchmark adapter=evil path=evil-{place} code={error['code']} reason=" in line


def test_choices_beyond_a_pass_are_refused_before_they_are_computed(server: Server, folder: Path) -> None:
    long = folder / "adapters" / "long"
    shutil.copytree(folder / "adapters" / "two", long)
    raw = json.loads((long / "bayesian_config.json").read_text())
    raw["prompt"]["choices"] = ["a" * 60, "b" * 60]
    (long / "bayesian_config.json").write_text(json.dumps(raw))
    error = ask(server, "PUT", "/v1/adapters/long", {"path": "long"}).json()["error"]
    assert "expected at most 128: shorten them, or raise --max-batch-tokens" in error["message"]


def test_draws_beyond_the_cap_are_refused_before_they_are_made(server: Server, folder: Path) -> None:
    greedy = folder / "adapters" / "greedy"
    shutil.copytree(folder / "adapters" / "two", greedy)
    raw = json.loads((greedy / "bayesian_config.json").read_text())
    raw["sampling"]["n_samples"] = 1024
    (greedy / "bayesian_config.json").write_text(json.dumps(raw))
    before = server.memory_mib
    error = ask(server, "PUT", "/v1/adapters/greedy", {"path": "greedy"}).json()["error"]
    assert "1024 draws, expected at most 64: raise --n-samples-cap" in error["message"]
    assert server.memory_mib - before < MOST_MIB


def test_a_good_one_is_loaded_after_all_of_them(server: Server) -> None:
    assert ask(server, "PUT", "/v1/adapters/evil", {"path": "three"}).status_code == 201
    assert ask(server, "PUT", "/v1/adapters/evil", {"path": "four"}).status_code == 200
    answer = ask(server, "POST", "/v1/predict", {"prompt": "x", "adapter": "evil"})
    assert answer.json()["adapter"]["name"] == "evil"
    assert ask(server, "DELETE", "/v1/adapters/evil").status_code == 204
