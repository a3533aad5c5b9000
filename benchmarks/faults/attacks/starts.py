"""Environments and arguments with which a server must not start, or must not start open."""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from benchmarks.faults.attacks.target import Case, Target
from benchmarks.server_process import ADAPTER, environment

__all__ = ["CASES"]

FAMILY = "starts"
PATIENCE_S = 60


def _start(name: str, make: Callable[[Target, Path], dict[str, str]], *expected: str) -> Case:
    """Start a server with variables that it should refuse, and return its exit."""

    def attack(target: Target) -> str:
        folder = target.folder / f"start-{abs(hash(name))}"
        folder.mkdir()
        given = environment() | {"BLORA_ADAPTERS": str(ADAPTER), "BLORA_PORT": "0"} | make(target, folder)
        command = [sys.executable, "-m", "blora.cli", "serve"]
        process = subprocess.Popen(command, env=given, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
        try:
            _, said = process.communicate(timeout=PATIENCE_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return "it started, or hangs"
        why = said.decode().strip().splitlines()[-1:]
        reason = "says why" if why and why[0].startswith("blora serve: ") else f"says {why}"
        return f"exit {process.returncode}, {reason}"

    return Case(FAMILY, name, expected or ("exit 2, says why",), attack)


def _pipe(target: Target, folder: Path) -> dict[str, str]:
    os.mkfifo(folder / "keys")
    return {"BLORA_API_KEYS": str(folder / "keys")}


def _taken(target: Target, folder: Path) -> dict[str, str]:
    return {"BLORA_PORT": str(target.address[1])}


CASES: Sequence[Case] = [
    _start("a variable that is no setting", lambda target, folder: {"BLORA_ADAPTRES": "x"}),
    _start("a port in Arabic digits with a line break", lambda target, folder: {"BLORA_PORT": "\u0668\u0660\n"}),
    _start("a port beyond the largest", lambda target, folder: {"BLORA_PORT": "65536"}),
    _start("a port that is taken", _taken),
    _start("a deadline of NaN", lambda target, folder: {"BLORA_TIMEOUT_S": "nan"}),
    _start("a deadline of infinity", lambda target, folder: {"BLORA_TIMEOUT_S": "inf"}),
    _start("a limit in full-width digits", lambda target, folder: {"BLORA_MAX_INPUTS": "\uff11\uff16.5"}),
    _start("a folder for a key file", lambda target, folder: {"BLORA_API_KEYS": str(folder)}).slowly(),
    _start("a pipe for a key file", _pipe).slowly(),
    _start(
        "a file for an adapter root",
        lambda target, folder: {"BLORA_ADAPTER_ROOT": str(target.keys), "BLORA_API_KEYS": str(target.keys)},
    ).slowly(),
]
