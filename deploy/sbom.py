"""The software bill of materials of the default image's Python, made from its locks: CycloneDX 1.6, as JSON.

`python deploy/sbom.py` prints it, the same for the same locks. The operating system's packages, and the Python's own
pip, are the base image's; `make image-release` has BuildKit list them, in an attestation beside the image.
"""

import json
import sys
import tomllib
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LOCKS = ("server.txt", "torch.txt", "model.txt")
# Where the image runs; the locks are for other systems and newer Pythons as well.
PLATFORMS = [
    {
        "python_version": "3.11",
        "python_full_version": "3.11.14",
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "os_name": "posix",
        "sys_platform": "linux",
        "platform_system": "Linux",
        "platform_machine": machine,
    }
    for machine in ("x86_64", "aarch64")
]


def locked(text: str) -> Iterator[tuple[Requirement, list[str]]]:
    """Each requirement of a lock that some platform of the image installs, and the SHA-256 of its files."""
    joined = text.replace("\\\n", " ")
    for line in joined.splitlines():
        if line.strip() and not line.startswith("#"):
            requirement, *hashes = line.split("--hash=sha256:")
            found = Requirement(requirement)
            if found.marker is None or any(found.marker.evaluate(platform) for platform in PLATFORMS):
                yield found, [value.strip() for value in hashes]


def component(requirement: Requirement, hashes: list[str]) -> dict[str, Any]:
    """Return a package of the index, with the hashes of all files that the lock allows."""
    [pin] = requirement.specifier
    purl = f"pkg:pypi/{requirement.name}@{pin.version}"
    return {
        "type": "library",
        "bom-ref": purl,
        "name": requirement.name,
        "version": pin.version,
        "purl": purl,
        "externalReferences": [
            {
                "type": "distribution",
                "url": f"https://pypi.org/project/{requirement.name}/{pin.version}/",
                "hashes": [{"alg": "SHA-256", "content": value} for value in hashes],
            }
        ],
    }


def bill() -> dict[str, Any]:
    """Return the document."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    components = [
        component(requirement, hashes)
        for name in LOCKS
        for requirement, hashes in locked((ROOT / "deploy" / "locks" / name).read_text())
    ]
    components.sort(key=lambda entry: str(entry["purl"]))
    image = {
        "type": "container",
        "bom-ref": "image",
        "name": project["name"],
        "version": project["version"],
        "licenses": [{"license": {"id": project["license"]}}],
    }
    return {
        "$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json",
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "serialNumber": f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, json.dumps([image, components]))}",
        "version": 1,
        "metadata": {"component": image},
        "components": components,
        "dependencies": [{"ref": "image", "dependsOn": [entry["bom-ref"] for entry in components]}],
    }


if __name__ == "__main__":
    json.dump(bill(), sys.stdout, indent=1)
    print()
