"""A real Prometheus, with the configuration that ships, scrapes a real server."""

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.server_process import ROOT, Server, serve

pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        shutil.which("prometheus") is None and "CI" not in os.environ,
        reason="prometheus is not installed; tests/programs.sh installs it on Debian",
    ),
]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("scraped") / "log") as running:
        answer = httpx.post(f"{running.url}/v1/predict", json={"prompt": "I was charged twice."}, timeout=60)
        assert answer.status_code == 200, answer.text
        yield running


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Prometheus that runs deploy/prometheus.yml, faster and against this server."""
    folder = tmp_path_factory.mktemp("prometheus")
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    for job in config["scrape_configs"]:
        job.pop("scrape_interval", None)
        job.pop("scrape_timeout", None)
        job["static_configs"] = [{"targets": [server.url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "deploy" / "alerts.yml", folder)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [
        "prometheus",
        f"--config.file={folder / 'prometheus.yml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        yield f"http://{address}"
    finally:
        process.terminate()
        process.wait(timeout=30)


def query(prometheus: str, expression: str, timeout_s: float = 60) -> list[dict[str, Any]]:
    """The samples of an expression, once there are any."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        try:
            answer = httpx.get(f"{prometheus}/api/v1/query", params={"query": expression}).json()
            if result := answer.get("data", {}).get("result"):
                return list(result)
        except (httpx.TransportError, ValueError):
            pass  # not up yet
        time.sleep(0.3)
    pytest.fail(f"no samples of {expression} after {timeout_s:g} s")


def test_it_finds_the_server_up_and_its_requests_counted(prometheus: str) -> None:
    [up] = query(prometheus, 'up{job="blora"} == 1')
    [counted] = query(prometheus, 'sum(blora_requests_total{adapter="triage",outcome=~"answered|abstained"})')
    [build] = query(prometheus, "blora_build_info")
    assert up["value"][1] == "1"
    assert float(counted["value"][1]) == 1
    assert build["metric"]["version"]


def test_promtool_finds_nothing_wrong_with_the_metrics(server: Server, tmp_path: Path) -> None:
    text = httpx.get(f"{server.url}/metrics").content
    checked = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr


def test_its_alerts_are_loaded_and_silent(prometheus: str, server: Server) -> None:
    query(prometheus, "blora_build_info")
    [group] = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    assert {rule["health"] for rule in group["rules"]} <= {"ok", "unknown"}
    assert len(group["rules"]) == 6
    assert httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"] == []


def test_the_metrics_are_as_prometheus_wants_them(server: Server) -> None:
    told = subprocess.run(
        ["promtool", "check", "metrics"],
        input=httpx.get(f"{server.url}/metrics").text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
