"""Names images by their digests, as the registries that have them say: a tag may be moved, a digest may not.

`python deploy/pin_images.py base` prints the Dockerfile's base image with its digest.
`python deploy/pin_images.py overlay cpu REGISTRY` writes deploy/k8s/release, which is that overlay with every image by
its digest: blora's own from REGISTRY, the others from where they are. Needs docker with buildx, and kustomize.
"""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
# What the operator builds, and pushes to a registry of theirs.
OWN = ("blora", "models")


def run(*command: str) -> str:
    """Return a command's output; if the command fails or is not installed, exit with its message."""
    try:
        told = subprocess.run(command, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        sys.exit(f"{command[0]} is not installed, expected it on the path; install it")
    if told.returncode:
        sys.exit(f"{shlex.join(command)}: {told.stderr.strip()}")
    return told.stdout


def digest(image: str) -> str:
    """Return the digest that the registry has under a tag, for all platforms together."""
    container = shlex.split(os.environ.get("CONTAINER", "docker"))
    told = run(*container, "buildx", "imagetools", "inspect", image, "--format", "{{json .Manifest}}")
    found = str(json.loads(told)["digest"])
    if not re.fullmatch("sha256:[0-9a-f]{64}", found):
        sys.exit(f"got {found} as the digest of {image}, expected sha256: and 64 hexadecimal digits")
    return found


def base(dockerfile: Path) -> str:
    """Return the base image, by tag for people and by digest for machines."""
    [image] = re.findall(r"^ARG PYTHON_IMAGE=(\S+)$", dockerfile.read_text(), re.MULTILINE)
    return f"{image}@{digest(image)}"


def images(resource: Any) -> Iterator[str]:
    """Every image that a resource's pods run."""
    if isinstance(resource, dict):
        for key, value in resource.items():
            if key in ("containers", "initContainers"):
                yield from (container["image"] for container in value)
            else:
                yield from images(value)
    elif isinstance(resource, list):
        for value in resource:
            yield from images(value)


def pinned(overlay: str, registry: str, k8s: Path) -> dict[str, Any]:
    """Return a kustomization of the overlay with its images by digest, but for those that have one already."""
    resources = yaml.safe_load_all(run("kustomize", "build", str(k8s / "overlays" / overlay)))
    pins = []
    for image in sorted({image for resource in resources for image in images(resource) if "@" not in image}):
        name, _, tag = image.rpartition(":")
        source = f"{registry}/{name}" if name in OWN else name
        pins.append({"name": name, "newName": source, "digest": digest(f"{source}:{tag}")})
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": [f"../overlays/{overlay}"],
        "images": pins,
    }


def main(arguments: list[str], root: Path = ROOT) -> None:
    """Run one of the two commands in this module's docstring."""
    match arguments:
        case ["base"]:
            print(base(root / "Dockerfile"))
        case ["overlay", overlay, registry]:
            k8s = root / "deploy" / "k8s"
            made = pinned(overlay, registry, k8s)
            (k8s / "release").mkdir(exist_ok=True)
            file = k8s / "release" / "kustomization.yaml"
            file.write_text("# Written by deploy/pin_images.py.\n" + yaml.safe_dump(made, sort_keys=False))
            print(f"kubectl apply -k {file.parent}")
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main(sys.argv[1:])
