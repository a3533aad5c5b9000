"""What kustomize makes of the overlays, and of each component on the base."""

import os
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import yaml

__all__ = [
    "ALONE",
    "K8S",
    "TARGETS",
    "build",
    "built",
    "container",
    "needs_kustomize",
    "one",
    "pod",
    "pods",
    "settings_of",
]

K8S = Path(__file__).resolve().parents[2] / "deploy" / "k8s"
OVERLAYS = tuple(f"overlays/{folder.name}" for folder in sorted((K8S / "overlays").iterdir()))
# `models-in-pod` is a part of two others; replicas are an autoscaler's only beside a shared memory of predictions.
ALONE = tuple(
    f"components/{folder.name}"
    for folder in sorted((K8S / "components").iterdir())
    if folder.name not in ("models-in-pod", "autoscaling")
)
TARGETS = ("base", *OVERLAYS, *ALONE)

needs_kustomize = pytest.mark.skipif(
    shutil.which("kustomize") is None and "CI" not in os.environ,
    reason="kustomize is not installed; tests/programs.sh installs it on Debian",
)


@cache
def built(target: str) -> list[dict[str, Any]]:
    """The resources of an overlay, or of the base with one component."""
    if target in ALONE:
        with TemporaryDirectory() as folder:
            shutil.copytree(K8S, folder, dirs_exist_ok=True)
            overlay = Path(folder) / "overlays" / "alone"
            overlay.mkdir()
            (overlay / "kustomization.yaml").write_text(
                yaml.safe_dump({"resources": ["../../base"], "components": [f"../../{target}"]})
            )
            return build(overlay)
    return build(K8S / target)


def build(folder: Path) -> list[dict[str, Any]]:
    """The resources of a folder with a kustomization."""
    told = subprocess.run(["kustomize", "build", str(folder)], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    return list(yaml.safe_load_all(told.stdout))


def one(target: str, kind: str, name: str = "blora") -> dict[str, Any]:
    """The resource of a kind and name."""
    [found] = [r for r in built(target) if r["kind"] == kind and r["metadata"]["name"] == name]
    return found


def pods(target: str) -> dict[str, dict[str, Any]]:
    """The pods' specifications, by the name of what makes them."""
    return {
        r["metadata"]["name"]: r["spec"]["template"]["spec"]
        for r in built(target)
        if r["kind"] in ("Deployment", "StatefulSet")
    }


def pod(target: str) -> dict[str, Any]:
    """The server's pod."""
    return pods(target)["blora"]


def container(target: str) -> dict[str, Any]:
    """The server's container."""
    [found] = pod(target)["containers"]
    return dict(found)


def settings_of(target: str) -> dict[str, str]:
    """The variables of the ConfigMap that the server reads."""
    [source] = container(target)["envFrom"]
    return dict(one(target, "ConfigMap", source["configMapRef"]["name"])["data"])
