"""Where a result came from: the machine, the libraries, the revision, the command."""

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
    """The project's git commit, with `+` where its code has changes; BLORA_REVISION, or unknown, outside git."""
    if given := os.environ.get("BLORA_REVISION"):
        return given
    root = Path(__file__).resolve().parent.parent

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return "unknown"  # installed within somebody else's repository
        # Results of other benchmarks change nothing about the code.
        changed = git("status", "--porcelain", "-uno", "--", ":/", ":!benchmarks/results")
        return git("rev-parse", "--short=12", "HEAD") + ("+" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def machine(device: "torch.device | None" = None) -> dict[str, str | int]:
    """Return the processor, its cores, and the libraries whose version changes results or speed.

    Args:
        device: that the run computes on. One that is not the processor is named as `accelerator`.
    """
    import torch

    processor = torch.cpu.get_capabilities().get("cpu_name") or platform.processor()
    found: dict[str, str | int] = {
        "processor": str(processor),
        "cores": os.cpu_count() or 0,
        "system": platform.system(),
        **{name: version(name) for name in ("torch", "transformers")},
    }
    if device is not None and device.type != "cpu":
        found["accelerator"] = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return found


def command_line(command: str, argv: list[str]) -> str:
    """The command that was run, ready to paste."""
    return shlex.join(["blora", command, *argv])
