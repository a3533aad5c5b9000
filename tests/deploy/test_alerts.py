"""The alert rules: what makes each fire, that their metrics exist, and that somebody knows what to do."""

import os
import re
import shutil
import subprocess

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.server_process import ROOT
from blora.server.build import Build
from blora.server.metrics import Metrics

DEPLOY = ROOT / "deploy"
RULES = [rule for group in yaml.safe_load((DEPLOY / "alerts.yml").read_text())["groups"] for rule in group["rules"]]


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
    families = text_string_to_metric_families(Metrics(Build.current()).render().decode())
    known = {name for family in families for name in (family.name, f"{family.name}_total")}
    asked = {name for rule in RULES for name in re.findall(r"\bblora_\w+", rule["expr"])}
    assert asked
    assert asked <= known


def test_each_has_a_line_in_the_runbook() -> None:
    runbook = (ROOT / "docs" / "deploy.md").read_text()
    assert [rule["alert"] for rule in RULES if f"| `{rule['alert']}` |" not in runbook] == []
