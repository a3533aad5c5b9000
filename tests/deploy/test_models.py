"""Where base models and adapters come from: what the init containers run, run here."""

import hashlib
import http.server
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

from blora.adapter import OWN_FILES
from tests.deploy.kustomize import K8S, build, needs_kustomize, one, pod, settings_of

pytestmark = needs_kustomize

ROOT = Path(__file__).resolve().parents[2]

REPOSITORIES = {
    "OWNER/BASE": {"config.json": b"{}", "model.safetensors": b"weights", "pytorch_model.bin": b"a pickle"},
    "OWNER/ADAPTER": {
        **dict.fromkeys(OWN_FILES, b"posterior"),
        "training_args.bin": b"a pickle",
        "optimizer.pt": b"one",
    },
}
COMMIT = "c0" * 20


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download of a repository asks of it, for whoever has the token."""

    def do_GET(self) -> None:
        status, body = self.found(self.path.partition("?")[0].strip("/").split("/"))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.send_header("x-repo-commit", COMMIT)
        self.send_header("etag", f'"{hashlib.sha1(body, usedforsecurity=False).hexdigest()}"')
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_HEAD(self) -> None:
        self.do_GET()

    def found(self, parts: list[str]) -> tuple[int, bytes]:
        if self.headers.get("authorization") != "Bearer hf_secret":
            return 401, b"{}"
        if parts[0] != "api":  # OWNER/NAME/resolve/REVISION/FILE
            return 200, REPOSITORIES["/".join(parts[:2])][parts[-1]]
        name = "/".join(parts[2:4])
        files = REPOSITORIES[name]
        if "tree" in parts:
            tree = [{"type": "file", "path": n, "size": len(c), "oid": n} for n, c in files.items()]
            return 200, json.dumps(tree).encode()
        return 200, json.dumps({"id": name, "sha": COMMIT, "siblings": [{"rfilename": n} for n in files]}).encode()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def download(hub: str, folder: Path, **extra: str) -> "subprocess.CompletedProcess[str]":
    """What the init container of `models-hub` does, with /models in a folder of the test's."""
    [init] = pod("components/models-hub")["initContainers"]
    [script] = init["args"]
    variables = one("components/models-hub", "ConfigMap", init["envFrom"][0]["configMapRef"]["name"])["data"]
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {
        "PATH": path,
        "HOME": str(folder),
        "HF_ENDPOINT": hub,
        "HF_HUB_DISABLE_XET": "1",
        **variables,
        **extra,
    }
    command = [*init["command"], script.replace("/models", str(folder))]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_a_download_gives_the_folders_that_the_server_reads_and_no_pickle(hub: str, tmp_path: Path) -> None:
    told = download(hub, tmp_path, HF_TOKEN="hf_secret")
    assert told.returncode == 0, told.stdout + told.stderr
    variables = settings_of("components/models-hub")
    base = tmp_path / Path(variables["BLORA_BASE_MODEL"]).relative_to("/models")
    adapter = tmp_path / Path(variables["BLORA_ADAPTERS"].partition("=")[2]).relative_to("/models")
    assert {file.name for file in base.iterdir() if file.is_file()} == {"config.json", "model.safetensors"}
    assert {file.name for file in adapter.iterdir() if file.is_file()} == set(OWN_FILES)
    assert (adapter / "adapter_model.safetensors").read_bytes() == b"posterior"


def test_without_its_token_the_pod_does_not_start(hub: str, tmp_path: Path) -> None:
    told = download(hub, tmp_path)
    assert told.returncode != 0
    assert not (tmp_path / "base" / "model.safetensors").exists()


def test_the_token_is_a_secrets_and_the_downloading_containers_alone() -> None:
    spec = pod("components/models-hub")
    [init] = spec["initContainers"]
    [token] = [variable for variable in init["env"] if variable["name"] == "HF_TOKEN"]
    assert token["valueFrom"]["secretKeyRef"] == {"name": "hub", "key": "token", "optional": True}
    [server] = spec["containers"]
    assert "HF_TOKEN" not in json.dumps(server)
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in server["env"]


def test_an_image_is_copied_whole_to_where_the_server_reads(tmp_path: Path) -> None:
    [init] = pod("components/models-image")["initContainers"]
    (tmp_path / "models/base").mkdir(parents=True)
    (tmp_path / "models/base/config.json").write_text("{}")
    (tmp_path / "volume").mkdir()
    command = [word.replace("/models/", f"{tmp_path}/models/").replace("/volume/", f"{tmp_path}/volume/")
               for word in init["command"]]  # fmt: skip
    subprocess.run(command, check=True)
    assert (tmp_path / "volume/base/config.json").exists()
    assert settings_of("components/models-image")["BLORA_BASE_MODEL"] == "/models/base"


@pytest.mark.parametrize("target", ["components/models-hub", "components/models-image"])
def test_a_pod_fills_a_volume_of_its_own_and_has_time_to(target: str) -> None:
    spec = pod(target)
    [volume] = [v for v in spec["volumes"] if v["name"] == "models"]
    assert "volumeClaimTemplate" in volume["ephemeral"]
    [init], [server] = spec["initContainers"], spec["containers"]
    [filled] = [mount for mount in init["volumeMounts"] if mount["name"] == "models"]
    [read] = [mount for mount in server["volumeMounts"] if mount["name"] == "models"]
    assert not filled.get("readOnly")
    assert read == {"name": "models", "mountPath": "/models", "readOnly": True}
    deadline = [one(t, "Deployment")["spec"]["progressDeadlineSeconds"] for t in (target, "base")]
    assert deadline[0] >= 3600 > deadline[1]


def test_a_claim_is_mounted_where_the_server_reads() -> None:
    spec = pod("components/models-volume")
    [volume] = [v for v in spec["volumes"] if v["name"] == "models"]
    assert volume["persistentVolumeClaim"] == {"claimName": "models", "readOnly": True}
    for variable in ("BLORA_BASE_MODEL", "BLORA_ADAPTERS"):
        assert "/models/" in settings_of("components/models-volume")[variable]


def test_values_above_a_component_are_the_ones_that_count(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "deploy.md").read_text()
    files = dict(re.findall(r"```yaml\n# (overlays/ours\S*)\n(.*?)```", page, re.DOTALL))
    assert len(files) == 2
    shutil.copytree(K8S, tmp_path / "k8s")
    for name, text in files.items():
        file = tmp_path / "k8s" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    values: dict[str, str] = {}
    for resource in build(tmp_path / "k8s" / "overlays" / "ours"):
        values |= resource["data"] if resource["kind"] == "ConfigMap" else {}
    for generated in yaml.safe_load(files["overlays/ours/kustomization.yaml"])["configMapGenerator"]:
        for name, value in (literal.split("=", 1) for literal in generated["literals"]):
            assert values[name] == value
    assert values["BLORA_BASE_MODEL"] == "/models/base"
