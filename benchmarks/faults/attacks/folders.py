"""Adapter folders that lie about what they are, change while they are read, or come and go too fast."""

import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import httpx

from benchmarks.faults.attacks import spoilers as spoil
from benchmarks.faults.attacks.spoilers import CALIBRATION, CARD, CONFIG, HEAD, POSTERIOR, WEIGHTS
from benchmarks.faults.attacks.target import OWNER, Case, Target, said
from benchmarks.server_process import ADAPTER

__all__ = ["CASES"]

FAMILY = "folders"
NONE = "422 invalid_adapter"
# What may become of an adapter that others load, replace and take away at the same moment.
IN_A_RACE = {"200", "201", "204", "404 unknown_adapter", "409 adapter_conflict"}


def _case(name: str, *expected: str) -> Callable[[Callable[[Target], str]], Case]:
    return lambda attack: Case(FAMILY, name, expected, attack)


def _loaded(
    name: str,
    spoil: Callable[[Path], Any],
    *expected: str,
    source: Callable[[Target], Path] = lambda target: ADAPTER,
) -> Case:
    """Load a spoiled copy of the demo's adapter or another, ask it if it loads, and unload it."""

    def attack(target: Target) -> str:
        path = target.copy(f"copy-{abs(hash(name))}", spoil, source=source(target))
        seen = said(target.load("copy", path))
        if seen in ("200", "201"):
            answered = said(target.ask(adapter="copy"))
            seen = f"{seen}, answers" if answered == "200" else f"{seen}, answers {answered}"
            target.unload("copy")
        return seen

    return Case(FAMILY, name, expected or (NONE,), attack)


def _named(shown: str, name: str, *expected: str) -> Case:
    def attack(target: Target) -> str:
        return said(target.load(name, target.copy("named")))

    return Case(FAMILY, f"an adapter named {shown}", expected or ("422 invalid_value",), attack)


def _at(shown: str, path: str, *expected: str) -> Case:
    return Case(FAMILY, f"an adapter at {shown}", expected, lambda target: said(target.load("there", path)))


SPOILED = [
    _loaded("hard links in the place of files", spoil.hard_links, "201, answers"),
    _loaded("a posterior of NaN", spoil.tensors(HEAD, lambda _, t: t * float("nan"))),
    _loaded("weights of infinity", spoil.tensors(HEAD, lambda _, t: t / 0)),
    _loaded("weights that are denormal", spoil.tensors(WEIGHTS, lambda _, t: t * 0 + 1e-40), source=spoil.small_lora),
    _loaded(
        "scales of a posterior at minus 1e30",
        spoil.tensors(POSTERIOR, lambda name, t: t * 0 - 1e30 if "raw_" in name else t),
        source=spoil.small_lora,
    ),
    _loaded(
        "scales of a posterior at 1e30",
        spoil.tensors(POSTERIOR, lambda name, t: t * 0 + 1e30 if "raw_" in name else t),
        source=spoil.small_lora,
    ),
    _loaded(
        "a sparse posterior of a terabyte",
        lambda folder: os.truncate(folder / HEAD, 2**40),
        "413 adapter_too_large",
    ),
    _loaded("a posterior with a megabyte behind it", spoil.longer),
    _loaded("a tensor twice in a header, alike", spoil.twice, "201, answers"),
    _loaded(
        "another base model", spoil.config(lambda raw: raw["base_model"].update(fingerprint="sha256:0", revision=None))
    ),
    _loaded(
        "a calibration written anew, with thresholds of a half", spoil.threshold(0.5, "confidence"), "201, answers"
    ),
    _loaded("thresholds of minus one", spoil.threshold(-1.0, "predictive_entropy")),
    _loaded("thresholds of two", spoil.threshold(2.0, "confidence")),
    _loaded("thresholds of NaN", spoil.threshold(float("nan"), "confidence")),
    _loaded("each target twice", spoil.calibration(lambda one: one["levels"].extend(one["levels"]))),
    _loaded(
        "a calibration of another adapter",
        spoil.calibration(lambda one: one["binding"].update(adapter_digest="sha256:" + "0" * 64)),
    ),
    _loaded("each calibration twice", spoil.calibrations(lambda entries: entries.extend(entries))),
    _loaded("a template of a megabyte", spoil.prompt(template="a " * 500_000 + "{prompt}")),
    _loaded(
        "a template with fields of Python",
        spoil.prompt(template="{prompt}{0.__class__}{prompt.__init__}"),
        "201, answers",
    ),
    _loaded("a template without a prompt", spoil.prompt(template="no question")),
    _loaded("fixed choices of control tokens", spoil.prompt(choices=["<|im_end|>", "<|im_start|>"])),
    _loaded(
        "fixed choices of more than a line where a line ends one",
        spoil.prompt(choices=["a\nb", "c"], choice_end="newline"),
    ),
    _loaded(
        "more draws than requests may ask for",
        spoil.config(lambda raw: raw["sampling"].update(n_samples=1024)),
    ),
    _loaded("a card that is a device", spoil.linked(CARD, "/dev/zero"), "403 forbidden"),
    _loaded("a card that is a link to a file outside", spoil.linked(CARD, "/etc/passwd"), "403 forbidden"),
    _loaded("a card that is a pipe", spoil.piped, "201, answers"),
    _loaded("a config that is a link to itself", spoil.linked(CONFIG, CONFIG), NONE),
    _loaded("12,000 files", spoil.many_files, "413 adapter_too_large"),
    _loaded("a pickle 900 folders deep", spoil.deep, "413 adapter_too_large"),
    _loaded("a pickle in capitals", lambda folder: (folder / "X.PKL").touch()),
    _loaded("a model of PEFT's own beside it", lambda folder: (folder / "adapter_model.bin").write_bytes(b"\x80\x04")),
    _loaded("a config with a field twice", spoil.field_twice),
]

NAMED = [
    _named("..", ".."),
    _named("of 65 letters", "a" * 65, "422 invalid_length"),
    _named("in letters that look like others", "tri\u0430ge"),
    _named("with a line break", "a\nb"),
    _named("with a slash", "a/b"),
    _at("a path with NUL", "a\0b", NONE),
    _at("a path of 900 KB", "a" * 900_000, NONE),
    _at("the root itself", ".", "413 adapter_too_large"),
    _at("an absolute path outside", "/etc", "403 forbidden"),
    _at("a path that leaves the root and comes back", "../adapters/.copies/named", "201"),
    _at("the home of somebody", "~root", NONE),
]


def _while(change: Callable[[], None], load: Callable[[], str], n_loads: int) -> str:
    """Return the outcomes of loads while a file keeps changing."""
    done = threading.Event()

    def keep_changing() -> None:
        while not done.is_set():
            change()

    changing = threading.Thread(target=keep_changing)
    changing.start()
    try:
        found = Counter(load() for _ in range(n_loads))
    finally:
        done.set()
        changing.join()
    odd = sorted(set(found) - {"200", "201", NONE, "403 forbidden", "409 adapter_conflict"})
    return f"also {odd}" if odd else "loaded whole, or refused"


@_case("a file that is a link outside, a pipe and a good file by turns", "loaded whole, or refused")
def _swapped(target: Target) -> str:
    path = target.copy("swapped")
    file, good = target.root / path / HEAD, ADAPTER / HEAD
    fresh = file.with_name("fresh")

    def swap() -> None:
        for make in (
            lambda: fresh.symlink_to("/etc/passwd"),
            lambda: os.mkfifo(fresh),
            lambda: shutil.copy(good, fresh),
        ):
            make()
            fresh.replace(file)

    def load() -> str:
        seen = said(target.load("swapped", path))
        target.unload("swapped")
        return seen

    return _while(swap, load, 15)


@_case("a file that grows while it is read", "loaded whole, or refused")
def _grown(target: Target) -> str:
    path = target.copy("grown")
    file = target.root / path / HEAD
    size = file.stat().st_size

    def grow() -> None:
        with file.open("ab") as growing:
            growing.write(b"\0" * 4096)
        if file.stat().st_size > 2 * size:
            os.truncate(file, size)

    return _while(grow, lambda: said(target.load("grown", path)), 8)


@_case("20 clients load, replace, unload and ask one name at once", "served or gone, and nothing else")
def _raced(target: Target) -> str:
    paths = [target.copy("one"), target.copy("two", lambda folder: (folder / CALIBRATION).unlink())]

    def act(number: int, owner: httpx.Client) -> httpx.Response:
        path = paths[number % 2]
        match number % 4:
            case 0:
                return owner.post("/v1/adapters", json={"name": "raced", "path": path})
            case 1:
                return owner.put("/v1/adapters/raced", json={"path": path})
            case 2:
                return owner.delete("/v1/adapters/raced")
            case _:
                return owner.post("/v1/predict", json={"prompt": "a", "adapter": "raced"})

    found = target.at_once(act, 60, OWNER)
    target.unload("raced")
    odd = sorted(set(found) - IN_A_RACE)
    return f"also {odd}" if odd else "served or gone, and nothing else"


@_case("20 clients put one adapter under one name at once", "1 of 201, 19 of 200")
def _put(target: Target) -> str:
    path = target.copy("put")
    found = target.at_once(lambda number, http: http.put("/v1/adapters/put", json={"path": path}), 20, OWNER)
    target.unload("put")
    return ", ".join(f"{count} of {status}" for status, count in sorted(found.items(), reverse=True))


@_case("more adapters than there may be, by 20 clients at once", "6 loaded at most, the others refused")
def _too_many(target: Target) -> str:
    path = target.copy("many")
    found = target.at_once(lambda number, http: http.put(f"/v1/adapters/many-{number}", json={"path": path}), 12, OWNER)
    n_loaded = len(target.http.get("/v1/adapters").json()["data"])
    for number in range(12):
        target.unload(f"many-{number}")
    others = sorted(set(found) - {"201", "409 too_many_adapters"})
    if others:
        return f"also {others}"
    return "6 loaded at most, the others refused" if n_loaded <= 6 else f"{n_loaded} loaded"


@_case("a folder under the polled root with escapes and line breaks in its name", "not served, no forged line")
def _escapes(target: Target) -> str:
    folder = target.root / "x\n2026-01-01 INFO forged\x1b[2J"
    folder.mkdir()
    time.sleep(2.5)
    folder.rmdir()
    lines = target.server.log.read_text().splitlines()
    forged = [line for line in lines if line.startswith("2026-01-01 INFO forged") or "\x1b" in line]
    return f"forged {forged[:1]}" if forged else "not served, no forged line"


@_case("a broken folder under the polled root, looked at four times", "one line of log")
def _polled(target: Target) -> str:
    folder = target.root / "broken"
    folder.mkdir()
    (folder / CONFIG).write_text("[")
    time.sleep(4.5)
    shutil.rmtree(folder)
    lines = target.server.log.read_text().splitlines()
    n_lines = sum("adapter_refused" in line and "broken" in line for line in lines)
    return "one line of log" if n_lines == 1 else f"{n_lines} lines of log"


@_case("the polled root taken away and put back", "answers meanwhile, loads after")
def _uprooted(target: Target) -> str:
    away = target.root.with_name("away")
    target.root.rename(away)
    time.sleep(2.5)
    meanwhile = said(target.ask())
    away.rename(target.root)
    time.sleep(1.5)
    after = said(target.load("after", target.copy("after")))
    target.unload("after")
    return "answers meanwhile, loads after" if (meanwhile, after) == ("200", "201") else f"{meanwhile}, then {after}"


CASES: Sequence[Case] = [
    *SPOILED,
    *NAMED,
    _swapped,
    _grown,
    _raced.slowly(),
    _put.slowly(),
    _too_many.slowly(),
    _escapes,
    _polled,
    _uprooted,
]
