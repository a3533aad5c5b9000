"""A real Prometheus, with the configuration that ships, pointed at a server of a test."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.server_process import ROOT, free_port

__all__ = ["needs_prometheus", "query", "scraping"]

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None and "CI" not in os.environ,
    reason="prometheus is not installed; tests/programs.sh installs it on Debian",
)


@contextmanager
def scraping(url: str, folder: Path) -> Iterator[str]:
    """The address of a Prometheus that runs deploy/prometheus.yml, faster and against a server at `url`."""
    config = yaml.safe_load((ROOT / "deploy" / "prometheus.yml").read_text())
    config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s"}
    for job in config["scrape_configs"]:
        job.pop("scrape_interval", None)
        job.pop("scrape_timeout", None)
        job["static_configs"] = [{"targets": [url.removeprefix("http://")]}]
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    shutil.copy(ROOT / "deploy" / "alerts.yml", folder)
    address = f"127.0.0.1:{free_port()}"
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
            if answer.get("status") == "error":
                pytest.fail(f"{expression}: {answer.get('error')}")
            if result := answer.get("data", {}).get("result"):
                return list(result)
        except (httpx.TransportError, ValueError):
            pass  # not up yet
        time.sleep(0.3)
    pytest.fail(f"no samples of {expression} after {timeout_s:g} s")
