"""Every overlay, and every component on the base: valid, whole, confined, and with settings that the server takes."""

import json
import os
import re
from typing import Any

import pytest
import yaml

from benchmarks.server_process import ADAPTER, ROOT
from blora.server.settings import Settings
from tests.deploy.kustomize import TARGETS, built, container, needs_kustomize, one, pod, pods, settings_of
from tests.deploy.test_manifests import image_env
from tests.deploy.test_tools import load_lint

pytestmark = needs_kustomize
every = pytest.mark.parametrize("target", TARGETS)
with_gpu = pytest.mark.parametrize("target", [t for t in TARGETS if "gpu" in t or "vllm" in t])


def settings(target: str, monkeypatch: pytest.MonkeyPatch) -> Settings:
    """As the server would read them there."""
    for key in [key for key in os.environ if key.startswith("BLORA_")]:
        monkeypatch.delenv(key)
    for key, value in (image_env() | settings_of(target)).items():
        if key.startswith("BLORA_"):
            monkeypatch.setenv(key, value)
    return Settings()


def bytes_of(quantity: str) -> int:
    number, unit = re.fullmatch(r"(\d+)([KMG]i)", quantity).groups()
    return int(number) * 1024 ** (" KMG".index(unit[0]))


def every_container(target: str) -> list[dict[str, Any]]:
    return [c for spec in pods(target).values() for c in (*spec.get("initContainers", []), *spec["containers"])]


@every
def test_it_is_valid(target, tmp_path):
    path = tmp_path / "built.yaml"
    path.write_text(yaml.safe_dump_all(built(target)))
    assert load_lint().lint_manifest(path) == []


@every
def test_what_pods_refer_to_is_there(target):
    maps = {r["metadata"]["name"] for r in built(target) if r["kind"] == "ConfigMap"}
    for spec in pods(target).values():
        containers = [*spec.get("initContainers", []), *spec["containers"]]
        assert {s["configMapRef"]["name"] for c in containers for s in c.get("envFrom", [])} <= maps
    spec = pod(target)
    assert spec["serviceAccountName"] == one(target, "ServiceAccount")["metadata"]["name"]
    mounted = {m["name"] for c in (*spec.get("initContainers", []), *spec["containers"]) for m in c["volumeMounts"]}
    assert mounted == {volume["name"] for volume in spec["volumes"]}


@every
def test_every_variable_is_a_setting(target):
    known = {f"BLORA_{field.upper()}" for field in Settings.model_fields} | {"BLORA_CACHE_DIR"}
    assert {name for name in settings_of(target) if name.startswith("BLORA_")} <= known


@every
def test_every_value_is_accepted(target, monkeypatch):
    found = settings(target, monkeypatch)
    assert found.host == "0.0.0.0"
    names = [source.name for source in found.adapter_sources]
    assert len(names) in (1, 3)  # an own adapter, or one for each of the demo's questions
    assert found.default_adapter in names  # a server with a default that it does not have does not start
    ports = {entry["name"]: entry["containerPort"] for entry in container(target)["ports"]}
    assert ports == {"http": found.port, "metrics": found.metrics_port}


@every
def test_the_dtype_is_named_and_the_demo_is_calibrated_for_it(target, monkeypatch):
    found = settings(target, monkeypatch)
    # A CPU may emulate bfloat16, and be refused; that node would restart the pod for ever.
    assert found.dtype == ("float32" if found.device == "cpu" and found.engine == "torch" else "bfloat16")
    calibrations = json.loads((ADAPTER / "calibration.json").read_text())["calibrations"]
    assert found.dtype in {calibration["binding"]["dtype"] for calibration in calibrations}


@every
def test_an_accepted_request_can_finish_while_draining(target, monkeypatch):
    found = settings(target, monkeypatch)
    assert "lifecycle" not in container(target)  # its time would count too
    assert found.drain_timeout_s >= found.timeout_s
    assert pod(target)["terminationGracePeriodSeconds"] >= found.drain_delay_s + found.drain_timeout_s + 8


@every
def test_replicas_share_their_memory_of_predictions(target, monkeypatch):
    scaled = [r["spec"]["maxReplicas"] for r in built(target) if r["kind"] == "HorizontalPodAutoscaler"]
    most = max([one(target, "Deployment")["spec"].get("replicas", 1), *scaled])
    assert (most > 1) == (settings(target, monkeypatch).feedback_redis is not None)


@every
def test_every_container_is_confined_and_has_its_limits(target):
    for spec in pods(target).values():
        context = spec["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["fsGroup"] == context["runAsGroup"]
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert spec["enableServiceLinks"] is False
    for one_of_them in every_container(target):
        context = one_of_them["securityContext"]
        assert context["readOnlyRootFilesystem"] is True
        assert context["allowPrivilegeEscalation"] is False
        assert context["capabilities"] == {"drop": ["ALL"]}
        for bounds in ("requests", "limits"):
            assert {"cpu", "memory", "ephemeral-storage"} <= set(one_of_them["resources"][bounds])
        assert re.search(r":v?\d", one_of_them["image"]), "no version"


@every
def test_a_pod_that_fills_its_folders_is_not_evicted_for_it(target):
    for spec in pods(target).values():
        folders = [v["emptyDir"] for v in spec["volumes"] if "emptyDir" in v]
        assert all("sizeLimit" in folder for folder in folders)
        on_disk = sum(bytes_of(folder["sizeLimit"]) for folder in folders if folder.get("medium") != "Memory")
        running = [*spec["containers"], *(c for c in spec.get("initContainers", []) if "restartPolicy" in c)]
        assert on_disk < sum(bytes_of(c["resources"]["limits"]["ephemeral-storage"]) for c in running)


@every
def test_a_changed_setting_rolls_the_pods(target):
    [source] = container(target)["envFrom"]
    assert re.fullmatch(r"blora-[a-z0-9]{10}", source["configMapRef"]["name"])


@with_gpu
def test_a_rollout_needs_no_spare_gpu_and_runs_where_there_are_some(target):
    spec = one(target, "Deployment")["spec"]
    assert spec["strategy"]["rollingUpdate"] == {"maxSurge": 0, "maxUnavailable": 1}
    [tolerated] = pod(target)["tolerations"]
    assert (tolerated["key"], tolerated["operator"]) == ("nvidia.com/gpu", "Exists")
    assert pod(target)["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    [term] = pod(target)["affinity"]["nodeAffinity"]["requiredDuringSchedulingIgnoredDuringExecution"][
        "nodeSelectorTerms"
    ]
    # 8.0 is Ampere, the first that computes in bfloat16.
    assert term["matchExpressions"] == [{"key": "nvidia.com/gpu.compute.major", "operator": "Gt", "values": ["7"]}]


@pytest.mark.parametrize("target", ["overlays/gpu", "overlays/vllm"])
def test_one_container_has_the_gpu(target):
    assert [c["resources"]["limits"].get("nvidia.com/gpu") for c in every_container(target)].count("1") == 1


def test_a_gpu_has_passes_and_memory_of_its_own(monkeypatch):
    found = settings("overlays/gpu", monkeypatch)
    on_cpu = settings("base", monkeypatch)
    assert found.device == "cuda"
    advised = re.search(r"`--max-batch-tokens`.*More suits a GPU \((\d+)\)", (ROOT / "docs/settings.md").read_text())
    assert found.max_batch_tokens == int(advised[1]) > on_cpu.max_batch_tokens
    memory = [bytes_of(container(t)["resources"]["limits"]["memory"]) for t in ("base", "overlays/gpu")]
    assert memory[1] > memory[0]


def test_a_vllm_in_the_pod_is_the_one_that_is_asked(monkeypatch):
    found = settings("overlays/vllm", monkeypatch)
    server = container("overlays/vllm")
    [vllm] = pod("overlays/vllm")["initContainers"]
    flags = dict(flag.removeprefix("--").split("=") for flag in vllm["args"] if "=" in flag)
    assert found.engine_url == f"http://{flags['host']}:{flags['port']}"
    assert int(flags["port"]) not in (found.port, found.metrics_port)
    for probe in ("startupProbe", "livenessProbe"):  # a hung one is started again
        assert found.engine_url in vllm[probe]["exec"]["command"][-1]
    assert found.dtype == flags["dtype"]
    assert vllm["restartPolicy"] == "Always"  # else the server would wait for its end
    mounts = [{m["mountPath"]: m["name"] for m in c["volumeMounts"]} for c in (vllm, server)]
    for shared in (str(found.engine_folder), "/models"):
        assert mounts[0][shared] == mounts[1][shared]
    assert vllm["args"][0] == found.base_model
    assert vllm["securityContext"] == server["securityContext"]
