"""`blora serve` in a subprocess, with the embedded model and the triage adapter."""

import asyncio
import json
import re
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.answers import ASKED, RESULT, TICKETS, ask_all, request_of
from benchmarks.processors.table import between_dtypes, distance
from benchmarks.server_process import ADAPTER, ROOT, TRIAGE, Server, demo, serve
from blora.adapter.calibration_file import read_calibrations
from blora.decision.binomial import binomial_cdf
from blora.disk.digests import canonical_digest
from blora.errors import AdapterError

pytestmark = pytest.mark.model

# Few draws: these tests are about the server, and a laptop's processor runs them.
N_SAMPLES = 2
N_AT_ONCE = 200
# What processor, dtype and the make-up of a batch may change, as it is documented.
TOLERANCE = distance("bfloat16") + between_dtypes()
PATIENT = {"timeout_s": "600", "drain_timeout_s": "600"}


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("live") / "log", **demo(), **PATIENT) as running:
        yield running


def client_of(server: Server) -> httpx.AsyncClient:
    limits = httpx.Limits(max_connections=N_AT_ONCE + 1, max_keepalive_connections=0)
    return httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits)


async def metric(client: httpx.AsyncClient, series: str) -> float:
    lines = (await client.get("/metrics")).text.splitlines()
    return next((float(line.split()[-1]) for line in lines if line.startswith(f"{series} ")), 0.0)


async def until_queued(client: httpx.AsyncClient, depth: int) -> None:
    async with asyncio.timeout(60):
        while await metric(client, "blora_queue_depth") < depth:
            await asyncio.sleep(0.02)


def tickets(name: str, n: int, **wanted: object) -> list[dict[str, Any]]:
    """Return the first tickets of a file with the wanted fields."""
    rows = map(json.loads, (TRIAGE / f"{name}.jsonl").read_text().splitlines())
    return [row for row in rows if all(row[key] == value for key, value in wanted.items())][:n]


def probabilities(answer: dict[str, Any]) -> list[float]:
    return [entry["probability"] for entry in answer["probabilities"]]


async def ask(client: httpx.AsyncClient, prompt: str) -> dict[str, Any]:
    # The adapter's own policy was proved for its own number of draws.
    body = {"prompt": prompt, "n_samples": N_SAMPLES, "policy": {"min_confidence": 0.5}}
    response = await client.post("/v1/predict", json=body)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_it_says_how_to_try_it(live: Server) -> None:
    assert f"curl -s {live.url}/v1/predict" in live.log.read_text()


@pytest.mark.parametrize("name", TICKETS)
async def test_the_readme_shows_what_the_server_says(live: Server, name: str) -> None:
    kept = json.loads(RESULT.read_text())["answers"][name]
    async with client_of(live) as client:
        answer = (await client.post("/v1/predict", json={"prompt": kept["prompt"]})).json()
    assert kept["prompt"] == TICKETS[name]
    assert answer["answer"] == kept["answer"]["answer"]
    assert answer["abstained"] == (name != "sure")
    assert probabilities(answer) == pytest.approx(probabilities(kept["answer"]), abs=TOLERANCE)


async def test_the_readme_shows_what_the_server_says_of_three_questions(live: Server) -> None:
    kept = json.loads(RESULT.read_text())["decisions"]["answers"]
    async with client_of(live) as client:
        response = await client.post("/v1/decisions", json=request_of(ASKED))
    found = response.raise_for_status().json()["answers"]
    assert [answer["name"] for answer in found] == ["queue", "urgent", "mood"]
    assert [answer["abstained"] for answer in found] == [answer["abstained"] for answer in kept]
    assert found[0]["choice"] == kept[0]["choice"]
    assert found[1]["probability"] == pytest.approx(kept[1]["probability"], abs=TOLERANCE)
    assert found[2]["score"] == pytest.approx(kept[2]["score"], abs=2 * TOLERANCE)


async def test_the_page_of_typed_questions_shows_what_the_server_says(live: Server) -> None:
    page = (ROOT / "docs" / "decisions.md").read_text()
    bodies = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    [asked] = (body for body in bodies if "state" in body)
    [shown] = (body["answers"] for body in bodies if "answers" in body)
    async with client_of(live) as client:
        found = (await client.post("/v1/systemone", json=asked)).raise_for_status().json()["answers"]
    urgent, mood = found["urgent"], found["mood"]
    assert [urgent["abstained"], mood["abstained"]] == [shown[name]["abstained"] for name in ("urgent", "mood")]
    assert urgent["noul"] == pytest.approx(shown["urgent"]["noul"], abs=TOLERANCE)
    assert mood["probabilities"] == pytest.approx(shown["mood"]["probabilities"], abs=TOLERANCE)
    assert mood["score"] == pytest.approx(shown["mood"]["score"], abs=2 * TOLERANCE)


@pytest.fixture(scope="module")
def judged(live: Server) -> dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]:
    """Return tickets with the demo's answers under its own policy, by kind; clear and ambiguous ones are the test file."""
    kinds = {
        "clear": tickets("test", 1000, ambiguous=False),
        "ambiguous": tickets("test", 1000, ambiguous=True),
        "foreign": tickets("out_of_scope", 20),
    }
    return {kind: list(zip(rows, ask_all(live.url, rows), strict=True)) for kind, rows in kinds.items()}


def test_the_policy_withholds_more_of_ambiguous_and_foreign_tickets_than_of_clear_ones(
    judged: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]],
) -> None:
    answers = {kind: [answer for _, answer in pairs] for kind, pairs in judged.items()}
    confidence = {kind: statistics.mean(a["confidence"] for a in found) for kind, found in answers.items()}
    withheld = {kind: statistics.mean(a["abstained"] for a in found) for kind, found in answers.items()}
    hits = sum(answer["top_choice"] == ticket["label"] for ticket, answer in judged["clear"])
    assert hits >= 0.6 * len(judged["clear"])
    assert confidence["clear"] > confidence["foreign"] + 0.1
    assert withheld["clear"] < min(withheld["ambiguous"], withheld["foreign"])
    assert all((a["answer"] is None) == a["abstained"] for found in answers.values() for a in found)


def test_the_test_file_does_not_contradict_what_the_demo_was_calibrated_for(
    live: Server, judged: dict[str, list[tuple[dict[str, Any], dict[str, Any]]]]
) -> None:
    card = httpx.get(f"{live.url}/v1/adapters/triage").raise_for_status().json()
    target, pairs = card["policy"]["target_risk"], judged["clear"] + judged["ambiguous"]
    assert all(answer["policy"]["target_risk"] == target for _, answer in pairs)
    wrong = [answer["answer"] != ticket["label"] for ticket, answer in pairs if not answer["abstained"]]
    assert 1 - binomial_cdf(sum(wrong) - 1, len(wrong), target) > 0.001
    missed = sum(ticket["label"] not in answer["prediction_set"] for ticket, answer in pairs)
    assert 1 - binomial_cdf(missed - 1, len(pairs), 0.1) > 0.001
    assert all(answer["top_choice"] in answer["prediction_set"] for _, answer in pairs)


def test_a_chat_is_not_what_the_demo_was_calibrated_for(live: Server) -> None:
    chat = {"messages": [{"role": "user", "content": "I was charged twice."}]}
    refused = httpx.post(f"{live.url}/v1/predict", json=chat, timeout=600)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_calibrated")
    own = httpx.post(f"{live.url}/v1/predict", json=chat | {"policy": {"min_confidence": 0.5}}, timeout=600)
    assert own.raise_for_status().json()["prediction_set"] is None


def test_a_threshold_edited_in_the_folder_is_noticed_by_who_pins_it(live: Server, tmp_path: Path) -> None:
    body = {"prompt": TICKETS["sure"], "policy": {"target_risk": 0.1}}
    before = httpx.post(f"{live.url}/v1/predict", json=body, timeout=600).raise_for_status().json()
    weights, decides = before["adapter"]["digest"], before["adapter"]["calibration_digest"]
    folder = Path(shutil.copytree(ADAPTER, tmp_path / "adapter"))
    file = folder / "calibration.json"
    contents = json.loads(file.read_text())
    edited = [level for one in contents["calibrations"] for level in one["levels"] if level["target_risk"] == 0.1]
    for level in edited:
        level["threshold"] -= 0.01
    file.write_text(json.dumps(contents))
    with pytest.raises(AdapterError, match="it was edited"):  # who edits it on purpose makes its digest anew
        read_calibrations(folder)
    del contents["digest"]
    file.write_text(json.dumps(contents | {"digest": canonical_digest(contents)}))
    with serve(tmp_path / "log", adapters=f"triage={folder}", **PATIENT) as other:
        answered = [
            httpx.post(f"{other.url}/v1/predict", json=body | {"adapter": f"triage@{pin}"}, timeout=600).status_code
            for pin in (weights, f"{weights}+{decides}")
        ]
    assert answered == [200, 404]


async def test_two_hundred_at_once(live: Server, capsys: pytest.CaptureFixture[str]) -> None:
    """No answer is lost or wrong, and memory does not grow."""
    prompts = [row["prompt"] for row in tickets("test", 20)]
    memory = []
    async with client_of(live) as client:
        alone = {prompt: probabilities(await ask(client, prompt)) for prompt in prompts}
        for _ in range(3):
            seconds: list[float] = []

            async def timed(prompt: str, seconds: list[float]) -> dict[str, Any]:
                started = time.perf_counter()
                answer = await ask(client, prompt)
                seconds.append(time.perf_counter() - started)
                return answer

            asked = [prompts[i % len(prompts)] for i in range(N_AT_ONCE)]
            answers = await asyncio.gather(*(timed(prompt, seconds) for prompt in asked))
            for prompt, answer in zip(asked, answers, strict=True):
                assert probabilities(answer) == pytest.approx(alone[prompt], abs=TOLERANCE)
            assert len({answer["id"] for answer in answers}) == N_AT_ONCE
            memory.append(live.memory_mib)
            cuts = statistics.quantiles(seconds, n=100)
            with capsys.disabled():
                sys.stdout.write(f"\n{N_AT_ONCE} at once: p50 {cuts[49]:.2f} s, p99 {cuts[98]:.2f} s ")
    _, second, third = memory  # in the first, batches have new shapes
    assert third < 1.05 * second + 32


async def test_clients_that_leave_under_load_cost_nothing_more(live: Server) -> None:
    prompts = [row["prompt"] for row in tickets("test", 20)]
    async with client_of(live) as client, client_of(live) as watching:  # the questions use all connections of one
        alone = probabilities(await ask(client, prompts[0]))
        dropped_before = await metric(client, 'blora_dropped_total{reason="cancelled"}')
        long = [" ".join(prompts[k:] + prompts[:k]) for k in range(len(prompts))]
        leaving = [asyncio.create_task(ask(client, prompt)) for prompt in long * 10]
        staying = [asyncio.create_task(ask(client, prompts[0])) for _ in range(10)]
        await until_queued(watching, 20)
        for task in leaving:
            task.cancel()
        for answer in await asyncio.gather(*staying):
            assert probabilities(answer) == pytest.approx(alone, abs=TOLERANCE)
        await asyncio.gather(*leaving, return_exceptions=True)
        assert await metric(client, 'blora_dropped_total{reason="cancelled"}') > dropped_before
        assert await metric(client, "blora_queue_depth") == 0
        assert (await client.get("/readyz")).status_code == 200


async def test_sigterm_under_load_loses_no_accepted_request(tmp_path: Path) -> None:
    prompts = [row["prompt"] for row in tickets("test", 20)] * 10
    with serve(tmp_path / "log", **PATIENT) as live:
        async with client_of(live) as client:
            asked = [asyncio.create_task(ask(client, prompt)) for prompt in prompts]
            await until_queued(client, 20)
            live.process.send_signal(signal.SIGTERM)
            answers = await asyncio.gather(*asked)
        assert len(answers) == len(prompts)
        assert await asyncio.to_thread(live.process.wait, 60) == 0


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        ({"adapters": "triage=/no/where"}, "got adapter /no/where, expected an existing directory"),
        ({"device": "abacus"}, "got device 'abacus'"),
    ],
)
def test_what_cannot_start_says_so_in_one_line(flags: dict[str, str], line: str) -> None:
    command = [sys.executable, "-m", "blora.cli", "serve", "--port=0", f"--adapters=triage={ADAPTER}"]
    command += [f"--{name}={value}" for name, value in flags.items()]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=180)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(f"blora serve: {line}")
    assert "Traceback" not in ended.stderr
