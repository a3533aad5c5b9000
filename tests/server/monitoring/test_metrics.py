"""ServerMetrics: the names of the contract, bounded labels, and counts that add up."""

import asyncio
from collections.abc import Sequence

import pytest
import torch
from prometheus_client.parser import text_string_to_metric_families

from blora.decision.calibration import Goal
from blora.server.engines.protocol import Job, Outcome
from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import ServerMetrics
from blora.server.scheduling.control import Control
from tests.blora.decision.test_calibrate import made
from tests.server.decision_models import choice, family, predicate
from tests.server.fakes import CHOICES, OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, Running, handle, running

NAMES = {
    "blora_requests", "blora_abstentions", "blora_non_finite", "blora_dropped", "blora_request_seconds",
    "blora_queue_seconds", "blora_forward_seconds", "blora_batch_rows", "blora_batch_tokens",
    "blora_samples_per_request", "blora_confidence", "blora_predictive_entropy_nats",
    "blora_mutual_information_nats", "blora_margin", "blora_familiarity", "blora_queue_depth", "blora_backlog_seconds", "blora_model_runs_in_parts", "blora_adapter_info", "blora_build_info",
    "blora_unfamiliar", "blora_drift_wealth", "blora_promised_answers", "blora_outcomes", "blora_realised_risk", "blora_realised_risk_lower_bound",
    "blora_promise_broken", "blora_outcome_corrections", "blora_unstored_predictions",
    "process_virtual_memory_bytes", "process_resident_memory_bytes",
    "process_start_time_seconds", "process_cpu_seconds", "process_open_fds", "process_max_fds",
}  # fmt: skip
LABELS = {"adapter", "outcome", "reason", "digest", "version", "revision", "le"}


async def test_the_names_are_those_of_the_contract(server: Running) -> None:
    response = await server.client.get("/metrics")
    assert response.headers["content-type"].startswith("text/plain")
    families = list(text_string_to_metric_families(response.text))
    assert {family.name for family in families} == NAMES
    assert all(sample.labels.keys() <= LABELS for family in families for sample in family.samples)
    assert all(family.documentation for family in families)


@pytest.mark.parametrize("reason", [None, "parts move the logits"])
async def test_a_model_that_runs_whole_is_told_by_info_and_a_metric(reason: str | None) -> None:
    async with running(FakeEngine(runs_whole_because=reason)) as server:
        assert await server.metric("blora_model_runs_in_parts") == (reason is None)
        assert (await server.client.get("/info")).json()["model"]["runs_whole_because"] == reason


async def test_outcomes_are_counted(server: Running) -> None:
    policy = {"min_confidence": 0.95}
    for body in (
        {"prompt": "p=0.9 x"},
        {"prompt": "p=0.9 y", "policy": policy},
        {"prompt": "NAN"},
        {"inputs": [{"prompt": "p=0.9 z"}, {"prompt": "p=0.5 z", "policy": policy}, {"prompt": 3}]},
    ):
        await server.client.post("/v1/predict", json=body)
    for outcome, count in {"answered": 2, "abstained": 2, "non_finite": 1}.items():
        assert await server.metric("blora_requests_total", adapter="triage", outcome=outcome) == count
    assert await server.metric("blora_requests_total", adapter="unknown", outcome="invalid_type") == 1
    assert await server.metric("blora_abstentions_total", adapter="triage", reason="low_confidence") == 2
    assert await server.metric("blora_non_finite_total", adapter="triage") == 1
    assert await server.metric("blora_confidence_count", adapter="triage") == 4
    assert await server.metric("blora_samples_per_request_sum") == 16
    assert await server.metric("blora_request_seconds_count") == 6
    assert await server.metric("blora_queue_depth") == 0


async def test_a_failure_counts_for_the_adapter_that_failed_alone() -> None:
    asked = []

    class Failing(FakeEngine):
        """An engine that gives NaN for the adapter that is asked first, and nothing for the other."""

        async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
            asked.append(jobs[0].handle.name)
            if len(asked) == 2:
                await asyncio.Event().wait()
            return [Outcome(torch.full((4, 3), torch.nan)) for _ in jobs]

    questions = [predicate(name="urgent"), choice(*CHOICES, name="queue")]
    async with running(Failing(handles=family()), max_batch_tokens=8) as server:  # so that each question is a pass
        body = {"model": "triage", "input": "hello there", "questions": questions}
        assert (await server.client.post("/v1/decisions", json=body)).json()["error"]["code"] == "non_finite"
        failed, other = asked
        assert {failed, other} == {"triage", "triage.urgent"}
        assert await server.metric("blora_non_finite_total", adapter=failed) == 1
        assert await server.metric("blora_non_finite_total", adapter=other) == 0
        assert await server.metric("blora_requests_total", adapter=failed, outcome="non_finite") == 1
        assert await server.metric("blora_requests_total", adapter=other, outcome="sibling_failed") == 1
        assert await server.metric("blora_requests_total") == 2
        assert await server.metric("blora_request_seconds_count") == 1


async def test_each_threshold_that_fails_is_counted(server: Running) -> None:
    policy = {"min_confidence": 0.95, "min_margin": 0.9, "max_mutual_information": 1}
    await server.client.post("/v1/predict", json={"prompt": "p=0.9 x", "policy": policy})
    for reason, count in {"low_confidence": 1, "low_margin": 1, "high_mutual_information": 0}.items():
        assert await server.metric("blora_abstentions_total", adapter="triage", reason=reason) == count
    assert await server.metric("blora_requests_total", adapter="triage", outcome="abstained") == 1


async def test_forward_passes_are_measured(server: Running) -> None:
    inputs = [{"prompt": "two words"}] * 3
    await server.client.post("/v1/predict", json={"inputs": inputs})
    assert await server.metric("blora_batch_rows_sum") == 3
    assert await server.metric("blora_batch_tokens_sum") == 3 * 2 * 4
    assert await server.metric("blora_forward_seconds_count") == await server.metric("blora_batch_rows_count")


async def test_what_is_served_is_told(server: Running) -> None:
    assert await server.metric("blora_adapter_info", adapter="triage", digest=TRIAGE_DIGEST) == 1
    assert await server.metric("blora_adapter_info", adapter="open", digest=OPEN_DIGEST) == 1
    build = Build.current()
    assert await server.metric("blora_build_info", version=build.version, revision=build.revision) == 1


async def test_the_counters_of_a_promise_start_at_0() -> None:
    """Without that, Prometheus sees no increase when the first outcome is reported."""
    calibration = made(Goal(target_risk=0.1))
    promising = handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration)
    async with running(FakeEngine((promising, handle("open", OPEN_DIGEST)))) as server:
        body = (await server.client.get("/metrics")).text
        for name in ("blora_promised_answers_total", "blora_outcomes_total", "blora_outcome_corrections_total"):
            found = [line for line in body.splitlines() if line.startswith(f"{name}{{")]
            assert len(found) == (2 if "promised" in name else 4)
            assert all('target_risk="0.1"' in line and line.endswith(" 0.0") for line in found)


async def outcomes(server: Running) -> dict[tuple[str, str], float]:
    """Return the value of each series of blora_requests_total, by adapter and outcome."""
    families = text_string_to_metric_families((await server.client.get("/metrics")).text)
    samples = (sample for family in families for sample in family.samples if sample.name == "blora_requests_total")
    return {(sample.labels["adapter"], sample.labels["outcome"]): sample.value for sample in samples}


async def test_the_outcomes_that_alerts_count_start_at_0_and_an_adapters_end_with_it() -> None:
    """Without that, Prometheus sees no increase in a burst of outcomes that had never occurred before."""
    of_none = {"unauthorized", "forbidden", "queue_full", "too_many_connections", "not_ready", "feedback_unavailable"}
    of_none |= {"internal_error", "deadline_exceeded"}
    of_one = {"answered", "abstained", "disconnected", "queue_full", "model_failure", "non_finite", "internal_error"}
    of_one |= {"deadline_exceeded", "engine_unreachable"}
    triage, unknown = ({(name, each) for each in part} for name, part in (("triage", of_one), ("unknown", of_none)))
    served = handle("triage", TRIAGE_DIGEST, choices=CHOICES)
    async with running(FakeEngine((served,))) as server:
        assert await outcomes(server) == dict.fromkeys(unknown | triage, 0)
        await server.client.post("/v1/predict", json={"prompt": "p=0.9 x"})
        assert await outcomes(server) == dict.fromkeys(unknown | triage, 0) | {("triage", "answered"): 1}
        server.app.state.service.metrics.adapter_unloaded(served)
        assert await outcomes(server) == dict.fromkeys(unknown, 0)
        server.app.state.service.metrics.adapter_loaded(served)
        assert await outcomes(server) == dict.fromkeys(unknown | triage, 0)


async def test_clients_cannot_mint_labels(server: Running) -> None:
    for i in range(20):
        await server.client.post("/v1/predict", json={"prompt": "x", "adapter": f"made-up-{i}"})
    assert "made-up" not in (await server.client.get("/metrics")).text
    assert await server.metric("blora_requests_total", adapter="unknown", outcome="unknown_adapter") == 20


def test_apps_share_no_metrics() -> None:
    one, other = ServerMetrics(Build("1", "a")), ServerMetrics(Build("1", "a"))
    one.queue_changed(3)
    assert b"blora_queue_depth 3.0" in one.render()
    assert b"blora_queue_depth 0.0" in other.render()


def test_the_build_comes_from_the_image(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_REVISION", "abc123")
    assert Build.current().revision == "abc123"
    monkeypatch.delenv("BLORA_REVISION")
    assert Build.current().revision == "unknown"
