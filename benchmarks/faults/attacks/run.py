"""Runs attacks, and after each asks whether the server is still what it was."""

import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults.attacks import folders, keys_and_feedback, requests, sockets, starts
from benchmarks.faults.attacks.target import Case, Target, said, target

__all__ = ["FAMILIES", "attack", "attacked", "left_behind"]

FAMILIES: dict[str, Sequence[Case]] = {
    module.FAMILY: module.CASES for module in (requests, sockets, keys_and_feedback, folders, starts)
}
# What an honest client asks, and what it is answered.
QUESTION, ANSWER = "I was charged twice", "billing"
# How long the longest probe during an attack may take; on an idle machine it takes hundredths.
PROBE_S = 20.0
PROBE_EVERY_S = 0.2
# What a family of attacks may leave behind.
MORE_HANDLES = 10


@dataclass(slots=True)
class _Probe:
    """Asks /livez again and again, and keeps the longest time that an answer took."""

    url: str
    longest_s: float = 0.0
    _done: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        while not self._done.is_set():
            started = time.monotonic()
            with suppress(httpx.TransportError):  # its connection may have had to make room
                httpx.get(f"{self.url}/livez", timeout=120)
            self.longest_s = max(self.longest_s, time.monotonic() - started)
            self._done.wait(PROBE_EVERY_S)

    def stop(self) -> None:
        self._done.set()


def attacked(folder: Path, families: Sequence[str] = tuple(FAMILIES)) -> dict[str, Any]:
    """Run all attacks of some families against one server.

    Args:
        folder: an empty one, for what the server needs.
        families: names of FAMILIES.
    """
    cases, held = [], []
    with target(folder) as victim:
        _settle(victim)
        for family in families:
            before = victim.handles, victim.server.memory_mib
            found = [attack(victim, case) for case in FAMILIES[family]]
            more = left_behind(victim, before[0])
            held.append(
                {
                    "family": family,
                    "handles": [before[0], victim.handles],
                    "memory_mib": [before[1], victim.server.memory_mib],
                    "as_expected": more <= MORE_HANDLES,
                }
            )
            cases += found
    return {"cases": cases, "held": held}


def attack(victim: Target, case: Case) -> dict[str, Any]:
    """Return an attack's expected and seen outcome, during the attack and afterwards."""
    probe = _Probe(victim.server.url)
    probing = threading.Thread(target=probe.run, daemon=True)
    probing.start()
    log_length, started = victim.server.log.stat().st_size, time.monotonic()
    try:
        seen = case.attack(victim)
    except Exception as error:  # of whatever kind: it is what was seen, and the others follow
        seen = f"{type(error).__name__}: {error}"
    seconds = time.monotonic() - started
    probe.stop()
    probing.join()
    wrong = _wrong(victim)
    with victim.server.log.open("rb") as log:
        log.seek(log_length)
        traces = log.read().count(b"Traceback (most recent call last)")
    return {
        "family": case.family,
        "name": case.name,
        "expected": list(case.expected),
        "seen": seen,
        "afterwards": wrong or "right",
        "tracebacks": traces,
        "longest_probe_s": probe.longest_s,
        "as_expected": seen in case.expected and not wrong and not traces and probe.longest_s < PROBE_S,
        "seconds": seconds,
    }


def _wrong(victim: Target) -> str:
    """Return a description of a failing server, empty if an honest client and the probes are served."""
    try:
        probes = {path: said(victim.http.get(path)) for path in ("/livez", "/readyz")}
        if wrong := [f"{path} {status}" for path, status in probes.items() if status != "200"]:
            return ", ".join(wrong)
        response = victim.post({"prompt": QUESTION, "policy": {"min_confidence": 0}})
        if response.status_code != 200:
            return said(response)
        if response.json()["answer"] != ANSWER:
            return f"{response.json()['answer']} for {ANSWER}"
    except httpx.TransportError as error:
        return type(error).__name__
    return ""


def _settle(victim: Target) -> None:
    """Lets the server grow to what honest questions of some lengths need."""
    for k in range(5):
        victim.ask(prompt="I was charged twice. " * 2**k, policy={"min_confidence": 0}).raise_for_status()


def left_behind(victim: Target, before: int) -> int:
    """How many more files and sockets the server has open than before, once what is closing has closed."""
    deadline = time.monotonic() + 10
    while victim.handles > before and time.monotonic() < deadline:
        time.sleep(0.2)
    return victim.handles - before
