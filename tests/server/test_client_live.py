"""The client, `blora ask` and the example worker against `blora serve`."""

import importlib.util
import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from mcp import Client as McpClient
from mcp import StdioServerParameters

from benchmarks.server_process import TRIAGE, Server, serve
from blora.client import Client, Prediction, Retries
from blora.client.mcp import PROMISE

pytestmark = pytest.mark.model

SURE = "I need a full dump of our workspace in JSON for the archive."
UNSURE = "blue seven"
PATIENT = {"timeout_s": "600", "drain_timeout_s": "600"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("live") / "log", **PATIENT) as running:
        yield running


def test_a_shell_gets_an_answer_and_an_exit_code(live: Server) -> None:
    asked = [sys.executable, "-m", "blora.cli", "ask", "--url", live.url]
    sure, unsure = (
        subprocess.run([*asked, prompt], capture_output=True, text=True, timeout=120) for prompt in (SURE, UNSURE)
    )
    assert (sure.returncode, sure.stdout.splitlines()[0]) == (0, "data export")
    assert (unsure.returncode, unsure.stdout.splitlines()[0]) == (3, "abstains")


async def test_a_language_model_gets_an_answer_or_the_reasons_for_none(live: Server) -> None:
    asked = ["-m", "blora.cli", "mcp", "--url", live.url]
    command = StdioServerParameters(command=sys.executable, args=asked, env=dict(os.environ))
    async with McpClient(command) as host:
        sure, unsure = [
            (await host.call_tool("ask", {"question": asked})).structured_content for asked in (SURE, UNSURE)
        ]
    assert sure is not None
    assert (sure["answer"], sure["promise"]) == ("data export", PROMISE.format(0.1))
    assert unsure is not None
    assert (unsure["answered"], unsure["answer"]) == (False, None)
    assert "than the threshold" in unsure["explanation"]


def test_the_example_worker_loses_no_ticket(live: Server, tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("worker", TRIAGE / "worker.py")
    assert spec is not None
    assert spec.loader is not None
    worker = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(worker)
    lines = (TRIAGE / "test.jsonl").read_text().splitlines()[:20]
    (tmp_path / "tickets").write_text("\n".join(lines) + "\n")
    worker.main(tmp_path / "tickets", tmp_path / "filed", tmp_path / "person", live.url)
    filed, person = (list(map(json.loads, (tmp_path / name).read_text().splitlines())) for name in ("filed", "person"))
    assert sorted(row["ticket"] for row in filed + person) == sorted(json.loads(line)["prompt"] for line in lines)
    assert filed
    assert person
    assert all(row["queue"] is not None for row in filed)
    assert all(row["queue"] is None and row["because"] for row in person)


def test_a_server_that_is_killed_and_started_again_is_waited_for(tmp_path: Path) -> None:
    found: list[Prediction] = []

    def ask(url: str) -> None:
        with Client(url, retries=Retries(longest_wait_s=0.5), deadline_s=240) as client:
            found.extend(client.predict(SURE) for _ in range(2))

    with serve(tmp_path / "first", **PATIENT) as first:
        with Client(first.url) as client:
            expected = client.predict(SURE, deadline_s=120).answer
        first.process.kill()
        first.process.wait()
        asking = threading.Thread(target=ask, args=(first.url,))
        asking.start()
        with serve(tmp_path / "second", port=first.url.rpartition(":")[2], **PATIENT):
            asking.join(240)
    assert [prediction.answer for prediction in found] == [expected] * 2
