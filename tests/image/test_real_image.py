"""The image, built and run: `make test-image`, or BLORA_IMAGE=NAME and what runs containers in CONTAINER."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from benchmarks.container import Container, inspect, start
from benchmarks.image import QUESTION

IMAGE = os.environ.get("BLORA_IMAGE", "")
ROOT = Path(__file__).resolve().parents[2]

# Of the Python in the image: what is installed, and what markers are held against.
ASK = """
import json
from importlib.metadata import distributions
from packaging.markers import default_environment

print(json.dumps([{d.name: d.version for d in distributions()}, default_environment()]))
"""

pytestmark = pytest.mark.skipif(not IMAGE, reason="no image: `make test-image` builds one and sets BLORA_IMAGE")


@pytest.fixture(scope="module")
def container() -> Iterator[Container]:
    with start(IMAGE, BLORA_DRAIN_DELAY_S="0") as running:
        yield running


def test_it_answers_on_a_read_only_file_system_without_privileges(container):
    answer = httpx.post(f"{container.url}/v1/predict", json={"prompt": QUESTION}, timeout=60)
    assert answer.status_code == 200, answer.text
    assert sum(p["probability"] for p in answer.json()["probabilities"]) == pytest.approx(1, abs=1e-4)
    root = next(line.split() for line in container.run("cat", "/proc/mounts").stdout.splitlines() if " / " in line)
    assert "ro" in root[3].split(",")
    assert container.run("id", "-u").stdout.strip() == "10001"
    status = container.run("cat", "/proc/1/status").stdout
    assert re.search(r"^CapEff:\s*0+$", status, re.MULTILINE)
    assert re.search(r"^NoNewPrivs:\s*1$", status, re.MULTILINE)


def test_its_revision_is_the_one_it_was_built_from(container):
    labels = inspect(IMAGE)["Config"]["Labels"]
    assert re.fullmatch("[0-9a-f]{40}", labels["org.opencontainers.image.revision"])
    assert httpx.get(f"{container.url}/info").json()["revision"] == labels["org.opencontainers.image.revision"]


def test_its_health_check_says_what_the_server_says(container):
    assert container.run("python", "/opt/healthcheck.py", "/livez").returncode == 0
    assert container.run("python", "/opt/healthcheck.py", "/nothing").returncode == 1


def test_what_builds_it_stays_in_the_builder(container):
    for absent in ("/src", "/opt/build"):
        assert container.run("test", "-e", absent).returncode == 1, absent


def test_what_is_in_it_is_what_was_locked(container):
    found, environment = json.loads(container.run("python", "-c", ASK).stdout)
    installed = {canonicalize_name(name): version for name, version in found.items()}
    here = [r for r in locked("server.txt") if r.marker is None or r.marker.evaluate(environment)]
    assert len(here) > 50
    assert [str(r) for r in here if installed.get(canonicalize_name(r.name)) not in r.specifier] == []
    others = installed.keys() - {canonicalize_name(r.name) for r in here}
    assert others <= {canonicalize_name(r.name) for r in (*locked("torch.txt"), *locked("model.txt"))} | {"blora"}


def locked(name: str) -> list[Requirement]:
    """What a file of deploy/locks pins."""
    lines = re.findall(r"^([a-z].*?) \\$", (ROOT / "deploy/locks" / name).read_text(), re.MULTILINE)
    return [Requirement(line) for line in lines]


def test_sigterm_ends_it_with_code_0():
    with start(IMAGE, BLORA_DRAIN_DELAY_S="0") as running:
        assert running.stop() == 0
