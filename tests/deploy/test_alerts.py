"""The alert rules: what makes each fire, that their metrics exist, and that somebody knows what to do."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server_process import ROOT
from blora.server.errors import CODES
from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import UNKNOWN_ADAPTER, ServerMetrics
from tests.server.fakes import TRIAGE_DIGEST, handle

DEPLOY = ROOT / "deploy"
ALL = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]
RULES = [rule for rule in ALL if "alert" in rule]


@pytest.mark.skipif(
    shutil.which("promtool") is None and "CI" not in os.environ,
    reason="promtool is not installed; tests/programs.sh installs it on Debian",
)
@pytest.mark.parametrize("arguments", [("check", "rules", "alerts.yml"), ("test", "rules", "alerts_test.yml")])
def test_they_do_what_their_tests_say(arguments: tuple[str, ...]) -> None:
    told = subprocess.run(["promtool", *arguments], cwd=DEPLOY, capture_output=True, text=True, timeout=60)
    assert told.returncode == 0, told.stdout + told.stderr


def test_each_has_a_test_of_its_own() -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    fired = {case["alertname"] for test in tests for case in test["alert_rule_test"] if case.get("exp_alerts")}
    assert fired == {rule["alert"] for rule in RULES}


def test_they_ask_for_metrics_that_the_server_has() -> None:
    families = text_string_to_metric_families(ServerMetrics(Build.current()).render().decode())
    endings = ("", "_total", "_bucket", "_count")
    known = {family.name + ending for family in families for ending in endings}
    recorded = {rule["record"] for rule in ALL if "record" in rule}
    asked = {name for rule in ALL for name in re.findall(r"[a-z:]*\bblora_[\w:]+", rule["expr"])}
    assert {name for name in asked if ":" in name} == recorded
    asked -= recorded
    assert asked
    assert asked <= known


@pytest.fixture
def started() -> set[tuple[bool, str]]:
    """Return the outcomes that a server counts from 0 on, by whether they are an adapter's."""
    metrics = ServerMetrics(Build.current())
    metrics.adapter_loaded(handle("triage", TRIAGE_DIGEST))
    families = text_string_to_metric_families(metrics.render().decode())
    samples = (sample for family in families for sample in family.samples if sample.name == "blora_requests_total")
    return {(sample.labels["adapter"] != UNKNOWN_ADAPTER, sample.labels["outcome"]) for sample in samples}


def test_each_outcome_that_they_count_starts_at_0(started: set[tuple[bool, str]]) -> None:
    counted = {
        code for rule in ALL for named in re.findall(r'outcome=~?"([^"]+)"', rule["expr"]) for code in named.split("|")
    }
    counted -= {"correct", "wrong"}  # of reported outcomes
    assert counted == {code for _, code in started}


def test_their_tests_begin_with_a_number_where_the_server_does_alone(started: set[tuple[bool, str]]) -> None:
    tests = yaml.safe_load((DEPLOY / "alerts_test.yml").read_text())["tests"]
    found = 0
    for each in (each for test in tests for each in test["input_series"]):
        if each["series"].startswith("blora_requests_total"):
            adapter, outcome = (
                re.findall(rf'{label}="([^"]+)"', each["series"])[0] for label in ("adapter", "outcome")
            )
            assert ((adapter != UNKNOWN_ADAPTER, outcome) in started) == (not each["values"].startswith("_")), each
            found += 1
    assert found


def test_failures_are_the_servers_own_and_what_they_are_a_share_of_are_inputs_that_could_be_answered() -> None:
    # Probes and load balancers get the first two as well, feedback and adapters are no inputs, and no request came of a
    # connection that was one too many.
    others = {"not_ready", "draining", "feedback_unavailable", "too_many_connections"}
    others |= {"adapter_stalled", "adapter_unavailable"}
    failures = {code for code, found in CODES.items() if found.status >= 500} - others
    for objective in ("faults", "slow"):
        for rule in (rule for rule in ALL if objective in rule.get("record", "")):
            *parts, whole = (set(named.split("|")) for named in re.findall(r'outcome=~"([^"]+)"', rule["expr"]))
            # A client that has given up has waited, and its wait is in the histogram.
            assert whole == failures | {"answered", "abstained"} | ({"disconnected"} if objective == "slow" else set())
            assert parts == ([failures] if objective == "faults" else [])


def test_the_latency_objective_is_a_bucket_of_the_histogram() -> None:
    [bound] = {found for rule in ALL for found in re.findall(r'le=~"(\d+)', rule["expr"])}
    assert f'blora_request_seconds_bucket{{le="{bound}.0"}}' in ServerMetrics(Build.current()).render().decode()


def test_each_has_a_line_in_the_runbook_that_says_whether_it_is_a_page_or_a_ticket() -> None:
    runbook = (ROOT / "docs" / "deploy.md").read_text()
    lines = {rule["alert"]: f"| `{rule['alert']}` | {rule['labels']['severity']}: " for rule in RULES}
    assert [alert for alert, line in lines.items() if line not in runbook] == []
