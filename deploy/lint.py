"""Lints the deployment files; exits 1 on any finding. A missing tool is a finding.

hadolint on the Dockerfile, the strict Kubernetes schemas on every manifest, and a
YAML parse of the rest. All offline, all from the `dev` extra.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

DEPLOY = Path(__file__).resolve().parent
# Kinds of others, whose schemas Kubernetes does not have.
OTHERS = ("monitoring.coreos.com/v1", "gateway.networking.k8s.io/v1")

try:
    import kubernetes_validate as schemas
    import yaml
except ImportError as exc:
    sys.exit(f"deploy/lint.py: {exc.name} is missing; pip install '.[dev]'")


def lint_dockerfile(path: Path) -> list[str]:
    """Return the findings of hadolint, style included."""
    # Beside the interpreter first: the environment need not be activated.
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    hadolint = shutil.which("hadolint", path=search)
    if hadolint is None:
        return ["hadolint is missing; pip install '.[dev]'"]
    command = [hadolint, "--no-color", "--failure-threshold", "style", str(path)]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode == 0:
        return []
    return (result.stdout + result.stderr).splitlines() or [f"{path}: hadolint failed"]


def lint_manifest(path: Path) -> list[str]:
    """Return findings against the schemas; a kind without a schema is a finding, for it may be misspelt."""
    findings = []
    for resource in yaml.safe_load_all(path.read_text()):
        if resource.get("kind") in ("Kustomization", "Component"):  # client-side files, with no such schema
            entries = [*resource.get("resources", []), *resource.get("components", [])]
            findings += [f"{path}: no {e}" for e in entries if not (path.parent / e).exists()]
            continue
        if resource["apiVersion"] in OTHERS:
            continue
        try:
            schemas.validate(resource, schemas.latest_version(), strict=True)
        except schemas.ValidationError as exc:
            findings.append(f"{path}: {'.'.join(map(str, exc.path))}: {exc.message}")
        except schemas.SchemaNotFoundError as exc:
            findings.append(f"{path}: {exc.message}")
    return findings


def patches_of(manifests: list[Path]) -> set[Path]:
    """Files that change resources and are none themselves."""
    found = set()
    for path in manifests:
        if path.name == "kustomization.yaml":
            patches = yaml.safe_load(path.read_text()).get("patches", [])
            found |= {path.parent / patch["path"] for patch in patches if "path" in patch}
    return found


def lint() -> list[str]:
    """Every finding, empty where all is well."""
    findings = lint_dockerfile(DEPLOY.parent / "Dockerfile")
    manifests = sorted((DEPLOY / "k8s").rglob("*.yaml"))
    if not manifests:
        findings.append(f"{DEPLOY / 'k8s'}: no manifest found")
    # What they make of a resource is held against its schema in the tests, which build the overlays.
    for path in sorted(set(manifests) - patches_of(manifests)):
        findings += lint_manifest(path)
    for path in sorted((*DEPLOY.glob("*.yaml"), *DEPLOY.glob("*.yml"))):
        try:
            yaml.safe_load(path.read_text())
        except (OSError, yaml.YAMLError) as exc:
            findings.append(f"{path}: {exc}")
    return findings


if __name__ == "__main__":
    found = lint()
    print("\n".join(found) or "deploy: no findings")
    sys.exit(bool(found))
