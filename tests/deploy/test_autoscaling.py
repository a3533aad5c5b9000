"""The autoscaler's metrics: their rules ship, stand on metrics that the server has, and say what it should do."""

import math
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.server_process import ROOT
from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import ServerMetrics
from tests.deploy.kustomize import needs_kustomize, one

RULES = yaml.safe_load((ROOT / "deploy/prometheus-adapter.yaml").read_text())["rules"]["custom"]
OVERLAYS = ("overlays/cpu", "overlays/gpu")


def metric_of(rule: dict[str, Any]) -> str:
    """The name under which prometheus-adapter serves a rule's metric."""
    series: str = rule["seriesQuery"].partition("{")[0]
    return re.sub(f"^{rule['name']['matches']}$", rule["name"]["as"], series) if "name" in rule else series


def query_of(rule: dict[str, Any]) -> str:
    """What the adapter asks of Prometheus for the pods a and b."""
    filled = {"Series": rule["seriesQuery"].partition("{")[0], "GroupBy": "pod"}
    filled["LabelMatchers"] = 'namespace="n",pod=~"a|b"'
    return re.sub(r"<<\.(\w+)>>", lambda found: filled[found[1]], rule["metricsQuery"])


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_it_asks_for_is_served(overlay):
    scaled = one(overlay, "HorizontalPodAutoscaler")["spec"]
    assert {metric["pods"]["metric"]["name"] for metric in scaled["metrics"]} == {metric_of(rule) for rule in RULES}
    assert scaled["scaleTargetRef"]["name"] == one(overlay, "Deployment")["metadata"]["name"]


@needs_kustomize
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_number_of_replicas_is_its_own(overlay):
    assert "replicas" not in one(overlay, "Deployment")["spec"]


@pytest.mark.parametrize("rule", RULES, ids=metric_of)
def test_the_rules_stand_on_metrics_that_the_server_has(rule):
    series = rule["seriesQuery"].partition("{")[0]
    assert f"\n{series} " in ServerMetrics(Build.current()).render().decode()
    assert rule["resources"]["overrides"] == {"namespace": {"resource": "namespace"}, "pod": {"resource": "pod"}}


@pytest.mark.skipif(
    shutil.which("promtool") is None and "CI" not in os.environ,
    reason="promtool is not installed; tests/programs.sh installs it on Debian",
)
def test_the_rules_tell_a_burst_from_a_backlog_and_a_half_from_a_whole(tmp_path: Path):
    backlog, busy = (query_of(rule) for rule in RULES)
    (tmp_path / "none.yml").write_text("groups: []\n")
    sampled = {
        'blora_backlog_seconds{namespace="n",pod="a"}': "0x20 3 0x19",  # a burst, seen by one of four scrapes
        'blora_backlog_seconds{namespace="n",pod="b"}': "30x40",
        'blora_forward_seconds_sum{namespace="n",pod="a"}': "0+7.5x40",  # seconds of a pass in each 15 s
        'blora_forward_seconds_sum{namespace="n",pod="b"}': "0+15x40",
    }
    expected = {backlog: (0.75, 30), busy: (0.5, 1)}
    test = {
        "interval": "15s",
        "input_series": [{"series": series, "values": values} for series, values in sampled.items()],
        "promql_expr_test": [
            {
                "expr": f"round({query}, 0.01)",
                "eval_time": "5m20s",
                "exp_samples": [
                    {"labels": f'{{pod="{pod}"}}', "value": v} for pod, v in zip("ab", values, strict=True)
                ],
            }
            for query, values in expected.items()
        ],
    }
    (tmp_path / "test.yml").write_text(
        yaml.safe_dump({"rule_files": ["none.yml"], "evaluation_interval": "5s", "tests": [test]})
    )
    command = ["promtool", "test", "rules", "test.yml"]
    told = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stdout + told.stderr


def desired(scaled: dict[str, Any], replicas: int, values: dict[str, float]) -> int:
    """The autoscaler's rule, without its behaviour over time: the largest of what each metric asks for."""

    def number(quantity: str) -> float:
        return float(quantity[:-1]) / 1000 if quantity.endswith("m") else float(quantity)

    wanted = [
        math.ceil(replicas * values[m["pods"]["metric"]["name"]] / number(m["pods"]["target"]["averageValue"]))
        for m in scaled["metrics"]
    ]
    return min(max(*wanted, scaled["minReplicas"]), scaled["maxReplicas"])


@needs_kustomize
@pytest.mark.parametrize(
    ("backlog_s", "busy", "replicas", "wanted"),
    [
        (0.05, 0.35, 4, 2),  # half of what they may do: half of them
        (0.05, 0.6, 4, 4),  # no backlog to speak of, and no reason to take one away
        (6, 1.0, 2, 10),  # swamped, which the share of the time alone would call 3
        (0.9, 0.7, 4, 4),
    ],
)
def test_it_follows_the_load_down_and_an_overload_up(backlog_s, busy, replicas, wanted):
    scaled = one("overlays/cpu", "HorizontalPodAutoscaler")["spec"]
    values = {"blora_backlog_seconds": backlog_s, "blora_busy_share": busy}
    assert desired(scaled, replicas, values) == wanted
