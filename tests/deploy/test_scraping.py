"""How Prometheus finds the servers: in one way each, and under the job that rules and dashboard ask for."""

import os
import re
import shutil
import subprocess

import pytest
import yaml

from benchmarks.server_process import ROOT
from tests.deploy.kustomize import TARGETS, built, container, needs_kustomize, one

PHASES = ("Pending", "Running", "Succeeded", "Failed", "Unknown")
MONITORED = ("components/monitoring", "overlays/cpu", "overlays/gpu", "overlays/vllm")


def kept(rule: dict[str, str]) -> list[str]:
    """The phases of a pod that a rule keeps, by Prometheus's anchored expressions."""
    assert rule["action"] == "keep"
    return [phase for phase in PHASES if re.fullmatch(rule["regex"], phase)]


@needs_kustomize
@pytest.mark.parametrize("target", MONITORED)
def test_the_operator_scrapes_the_metrics_port_of_each_pod(target):
    monitor = one(target, "PodMonitor")["spec"]
    [endpoint] = monitor["podMetricsEndpoints"]
    assert endpoint["path"] == "/metrics"
    assert endpoint["port"] in {entry["name"] for entry in container(target)["ports"]}
    labels = one(target, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert monitor["selector"]["matchLabels"].items() <= labels.items()
    assert labels[monitor["jobLabel"]] == "blora"
    [phase] = endpoint["relabelings"]
    assert phase["sourceLabels"] == ["__meta_kubernetes_pod_phase"]
    assert kept(phase) == ["Running"]


@needs_kustomize
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_is_scraped_twice(target):
    for resource in built(target):
        assert "prometheus.io" not in yaml.safe_dump(resource)
    monitors = [r for r in built(target) if r["kind"] in ("ServiceMonitor", "PodMonitor")]
    assert len(monitors) == (target in MONITORED)
    [port] = one(target, "Service")["spec"]["ports"]
    assert port["targetPort"] == "http"


@needs_kustomize
def test_a_prometheus_without_the_operator_finds_the_same_port_under_the_same_job():
    [job] = yaml.safe_load((ROOT / "deploy/prometheus-kubernetes.yml").read_text())["scrape_configs"]
    assert job["job_name"] == "blora"
    [endpoint] = one("components/monitoring", "PodMonitor")["spec"]["podMetricsEndpoints"]
    assert job["scrape_interval"] == endpoint["interval"]
    keep, phase = (rule for rule in job["relabel_configs"] if rule.get("action") == "keep")
    assert phase["source_labels"] == ["__meta_kubernetes_pod_phase"]
    assert kept(phase) == ["Running"]
    labels = one("base", "Deployment")["spec"]["template"]["metadata"]["labels"]
    values = {
        "__meta_kubernetes_pod_label_app_kubernetes_io_name": labels["app.kubernetes.io/name"],
        "__meta_kubernetes_pod_container_port_name": "metrics",
    }
    assert re.fullmatch(keep["regex"], ";".join(values[label] for label in keep["source_labels"]))
    assert not re.fullmatch(keep["regex"], "blora;http")
    named = {rule["target_label"] for rule in job["relabel_configs"] if "target_label" in rule}
    assert named == {"namespace", "pod"}  # which the rules and the autoscaler's metrics go by


@pytest.mark.skipif(
    shutil.which("promtool") is None and "CI" not in os.environ,
    reason="promtool is not installed; tests/programs.sh installs it on Debian",
)
@pytest.mark.parametrize("file", ["prometheus.yml", "prometheus-kubernetes.yml"])
def test_the_configuration_is_valid(file):
    command = ["promtool", "check", "config", "--syntax-only", file]
    told = subprocess.run(command, cwd=ROOT / "deploy", capture_output=True, text=True, timeout=60, check=False)
    assert told.returncode == 0, told.stdout + told.stderr
