"""The network policies, all together: who reaches which port of whom, and what the server reaches itself."""

import ipaddress
from typing import Any

import pytest

from blora.server.app import create_app
from blora.server.settings import Settings
from tests.deploy.kustomize import TARGETS, built, needs_kustomize, one, pod, settings_of
from tests.server.fakes import FakeEngine

pytestmark = needs_kustomize

HERE = "blora-namespace"
SERVER = {"app.kubernetes.io/name": "blora"}
REDIS = {"app.kubernetes.io/name": "blora-redis"}
PROMETHEUS = {"app.kubernetes.io/name": "prometheus"}
DNS = {"k8s-app": "kube-dns"}

Peer = tuple[str, dict[str, str]] | str
"""A pod by its namespace and labels, or an address outside."""


def selects(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels"}
    return selector.get("matchLabels", {}).items() <= labels.items()


def is_peer(entry: dict[str, Any], peer: Peer) -> bool:
    if isinstance(peer, str):
        block = entry.get("ipBlock")
        address = ipaddress.ip_address(peer)
        return (
            block is not None
            and address in ipaddress.ip_network(block["cidr"])
            and not any(address in ipaddress.ip_network(other) for other in block.get("except", []))
        )
    if "ipBlock" in entry:
        return False
    namespace, labels = peer
    if "namespaceSelector" in entry:
        here = selects(entry["namespaceSelector"], {"kubernetes.io/metadata.name": namespace})
    else:
        here = namespace == HERE
    return here and selects(entry.get("podSelector", {}), labels)


def allowed(target: str, labels: dict[str, str], direction: str, port: int | str, peer: Peer) -> bool:
    """Whether the pods with these labels may exchange anything with that peer by that port.

    Policies add up; a pod that none is about may do everything.
    """
    key = {"Ingress": "from", "Egress": "to"}[direction]
    about = [
        r["spec"]
        for r in built(target)
        if r["kind"] == "NetworkPolicy"
        and direction in r["spec"]["policyTypes"]
        and selects(r["spec"]["podSelector"], labels)
    ]
    rules = [rule for spec in about for rule in spec.get(direction.lower(), [])]
    return not about or any(
        port in [entry["port"] for entry in rule["ports"]] and any(is_peer(entry, peer) for entry in rule[key])
        for rule in rules
    )


@pytest.mark.parametrize("target", TARGETS)
def test_prometheus_reaches_the_metrics_and_nothing_else(target):
    assert allowed(target, SERVER, "Ingress", "metrics", ("monitoring", PROMETHEUS))
    assert not allowed(target, SERVER, "Ingress", "http", ("monitoring", PROMETHEUS))
    assert not allowed(target, SERVER, "Ingress", "metrics", ("elsewhere", PROMETHEUS))
    assert not allowed(target, SERVER, "Ingress", "metrics", ("monitoring", {}))


@pytest.mark.parametrize("target", TARGETS)
def test_the_namespace_asks_and_others_do_not(target):
    assert allowed(target, SERVER, "Ingress", "http", (HERE, {}))
    assert not allowed(target, SERVER, "Ingress", "metrics", (HERE, {}))
    assert not allowed(target, SERVER, "Ingress", "http", ("elsewhere", {}))
    assert not allowed(target, SERVER, "Ingress", "http", "203.0.113.7")


def test_a_gateway_asks_from_its_namespace():
    assert allowed("components/gateway", SERVER, "Ingress", "http", ("gateway", {}))
    assert not allowed("components/gateway", SERVER, "Ingress", "metrics", ("gateway", {}))


def test_a_gateway_closes_idle_connections_before_the_server_does():
    """After an hour, as Envoy does; otherwise it may send a question on a connection that the server is closing."""
    assert int(settings_of("components/gateway")["BLORA_KEEP_ALIVE_S"]) > 3600


def test_a_gateway_passes_questions_and_outcomes_and_no_change_of_adapters():
    [rule] = one("components/gateway", "HTTPRoute")["spec"]["rules"]
    passed = {match["path"]["value"] for match in rule["matches"] if match["path"]["type"] == "Exact"}
    paths = create_app(Settings(), FakeEngine()).openapi()["paths"]
    posted = {path for path, methods in paths.items() if "post" in methods}
    assert len(rule["matches"]) == len(passed)
    assert passed == posted - {"/v1/adapters"}


@pytest.mark.parametrize("target", TARGETS)
def test_names_are_asked_of_the_clusters_dns_alone(target):
    assert allowed(target, SERVER, "Egress", 53, ("kube-system", DNS))
    for other in [("kube-system", {}), ("elsewhere", DNS), (HERE, {}), "203.0.113.7"]:
        assert not allowed(target, SERVER, "Egress", 53, other)


@pytest.mark.parametrize("target", TARGETS)
def test_only_a_download_leaves_the_cluster_and_reaches_nothing_in_it(target):
    assert allowed(target, SERVER, "Egress", 443, "203.0.113.7") == (target == "components/models-hub")
    for address in ("10.96.0.1", "172.20.0.1", "192.168.1.1", "169.254.169.254"):
        assert not allowed(target, SERVER, "Egress", 443, address)
    assert not allowed(target, SERVER, "Egress", 443, (HERE, {}))


@pytest.mark.parametrize("target", ["components/redis", "overlays/cpu", "overlays/gpu"])
def test_redis_is_reached_by_the_server_and_reaches_nothing(target):
    assert allowed(target, SERVER, "Egress", 6379, (HERE, REDIS))
    assert not allowed(target, SERVER, "Egress", 6379, (HERE, {}))
    assert allowed(target, REDIS, "Ingress", "redis", (HERE, SERVER))
    for other in [(HERE, {}), ("elsewhere", SERVER), ("monitoring", PROMETHEUS)]:
        assert not allowed(target, REDIS, "Ingress", "redis", other)
    assert not allowed(target, REDIS, "Egress", 53, ("kube-system", DNS))


@pytest.mark.parametrize("target", TARGETS)
def test_policies_name_ports_that_the_server_has(target):
    named = {entry["name"] for container in pod(target)["containers"] for entry in container["ports"]}
    for resource in built(target):
        if resource["kind"] == "NetworkPolicy" and selects(resource["spec"]["podSelector"], SERVER):
            opened = [e["port"] for rule in resource["spec"].get("ingress", []) for e in rule["ports"]]
            assert set(opened) <= named
