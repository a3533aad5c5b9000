"""Provenance of a result: the machine, the libraries, the revision and the command."""

import os
import platform
import shlex
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

__all__ = ["command_line", "machine", "revision"]


def revision() -> str:
    """Return the project's git commit, with `+` appended if the code has uncommitted changes.

    The variable BLORA_REVISION, if set, takes its place; outside git the revision is "unknown".
    """
    if given := os.environ.get("BLORA_REVISION"):
        return given
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return "unknown"  # installed inside another project's repository
        # Changed benchmark results are not changes of the code.
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":!benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: "torch.device | None" = None) -> dict[str, str | int]:
    """Return the processor, the operating system, and the versions of libraries that affect results or speed.

    Args:
        device: the device of the run; if it is not the CPU, its name is added as `accelerator`.
    """
    import torch

    processor = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    found: dict[str, str | int] = {
        "processor": str(processor),
        "cores": os.cpu_count() or 0,
        "system": platform.system(),
        "torch": str(torch.__version__),  # with the build, such as +cpu, which a wheel's metadata may lack
        "transformers": version("transformers"),
    }
    if device is not None and device.type != "cpu":
        found["accelerator"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found


def command_line(command: str, argv: list[str]) -> str:
    """Return the command line, quoted for a shell."""
    return shlex.join(["blora", command, *argv])
