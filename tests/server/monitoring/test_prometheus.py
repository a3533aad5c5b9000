"""A real Prometheus, with the configuration that ships, scrapes a real server."""

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from benchmarks.server_process import Server, serve
from tests.prometheus import needs_prometheus, query, scraping

pytestmark = [pytest.mark.model, needs_prometheus]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("scraped") / "log") as running:
        answer = httpx.post(f"{running.url}/v1/predict", json={"prompt": "I was charged twice."}, timeout=60)
        assert answer.status_code == 200, answer.text
        yield running


@pytest.fixture(scope="module")
def prometheus(server: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with scraping(server.url, tmp_path_factory.mktemp("prometheus")) as address:
        yield address


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
    groups = httpx.get(f"{prometheus}/api/v1/rules").json()["data"]["groups"]
    assert {rule["health"] for group in groups for rule in group["rules"]} <= {"ok", "unknown"}
    assert {group["name"] for group in groups} == {"blora-objectives", "blora"}
    alerts = httpx.get(f"{prometheus}/api/v1/alerts").json()["data"]["alerts"]
    # An alert on absence is pending if the rules are evaluated before the first scrape.
    assert [alert for alert in alerts if alert["state"] == "firing"] == []


def test_the_metrics_are_as_prometheus_wants_them(server: Server) -> None:
    told = subprocess.run(
        ["promtool", "check", "metrics"],
        input=httpx.get(f"{server.url}/metrics").text,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert (told.returncode, told.stdout, told.stderr) == (0, "", "")
