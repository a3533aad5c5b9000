"""Keys that are nearly right, a key file that is not a file any more, and outcomes told by those who do not know."""

import os
import threading
import unicodedata
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import httpx

from benchmarks.faults.attacks.target import BOUND, CLIENT, KEYS, OTHER, OWNER, Case, Target, said, statuses
from blora.server.keys import line_of

__all__ = ["CASES"]

FAMILY = "keys and feedback"
ANY = {"min_confidence": 0}


def _case(name: str, *expected: str) -> Callable[[Callable[[Target], str]], Case]:
    return lambda attack: Case(FAMILY, name, expected, attack)


def _key(name: str, header: str, *expected: str) -> Case:
    def attack(target: Target) -> str:
        head = "GET /v1/models HTTP/1.1\r\nhost: x\r\nconnection: close\r\nauthorization: "
        return statuses(target.say(f"{head}{header}\r\n\r\n".encode()))

    return Case(FAMILY, name, expected or ("401 unauthorized",), attack)


def _file(name: str, replace: Callable[[Path], object], *expected: str) -> Case:
    """Return what the client and a stranger see while something else stands in the key file's place."""

    def attack(target: Target) -> str:
        target.keys.unlink()
        replace(target.keys)
        try:
            known = said(target.http.get("/v1/models"))
            unknown = said(target.http.get("/v1/models", headers={"authorization": "Bearer x"}))
        finally:
            _restore(target)
        return f"{known}; {unknown} for a stranger"

    return Case(FAMILY, name, expected or ("200; 401 unauthorized for a stranger",), attack)


def _restore(target: Target) -> None:
    fresh = target.keys.with_name("fresh")
    fresh.write_text("\n".join(KEYS) + "\n")
    if target.keys.is_dir():
        target.keys.rmdir()
    fresh.replace(target.keys)


def _sparse(file: Path) -> None:
    file.touch()
    os.truncate(file, 2**40)


def _tell(target: Target, prediction: str, label: str, key: str = CLIENT) -> str:
    return said(target.post({"prediction_id": prediction, "label": label}, path="/v1/feedback", key=key))


def _of_another(key: str, *expected: str) -> Case:
    name = "an admin" if key == OWNER else "another client"

    def attack(target: Target) -> str:
        return _tell(target, target.ask().json()["id"], "billing", key)

    return Case(FAMILY, f"an outcome of somebody's answer told by {name}", expected, attack)


NEARLY = [
    _key("a key in another case", f"Bearer {CLIENT.upper()}"),
    _key("a key with two spaces for one", f"Bearer {CLIENT.replace(' ', '  ')}"),
    _key("a key with a no-break space", f"Bearer {CLIENT.replace(' ', chr(160))}"),
    _key("a key in wide letters", "Bearer " + "".join(chr(ord(c) + 0xFEE0) if c != " " else c for c in CLIENT)),
    _key("a key with a zero-width space", f"Bearer {CLIENT}\u200b"),
    _key("the hash of a key", "Bearer " + KEYS[1].split()[2]),
    _key("the name of a key", "Bearer client"),
    _key("no key behind Bearer", "Bearer "),
    _key("a key of 60 KB", "Bearer " + "x" * 60_000),
    _key("a key as a password", f"Basic {CLIENT}"),
    _key("a key with spaces around it", f"Bearer   {CLIENT}  ", "200"),
]

FILES = [
    _file("a folder in the place of the key file", lambda file: file.mkdir()),
    _file("a pipe in the place of the key file", lambda file: os.mkfifo(file)),
    _file("a terabyte in the place of the key file", _sparse),
    _file("a device in the place of the key file", lambda file: file.symlink_to("/dev/zero")),
    _file("a loop of links in the place of the key file", lambda file: file.symlink_to(file)),
    _file("no key file", lambda file: None),
    _file("bytes that are no text in the key file", lambda file: file.write_bytes(b"\xff\xfe\0" * 1000)),
    _file("half a line in the key file", lambda file: file.write_text("\n".join(KEYS)[:-10])),
    _file("an empty key file", lambda file: file.touch(), "401 unauthorized; 401 unauthorized for a stranger"),
    _file(
        "a key file of 8,000 other keys and ours",
        lambda file: file.write_text("\n".join([*KEYS, *(line_of(f"k{i}", "predict", str(i)) for i in range(8000))])),
    ),
]


@_case("a key file that is rewritten all the while, one rename after the other", "100 of 200")
def _rewritten(target: Target) -> str:
    done = threading.Event()

    def rewrite() -> None:
        while not done.is_set():
            _restore(target)

    writing = threading.Thread(target=rewrite)
    writing.start()
    found = Counter(said(target.http.get("/v1/models")) for _ in range(100))
    done.set()
    writing.join()
    return ", ".join(f"{count} of {status}" for status, count in found.items())


@_case("2,000 wrong keys from 20 clients", "2000 of 401 unauthorized, less than 100 KB of log")
def _guessed(target: Target) -> str:
    before = target.server.log.stat().st_size

    def guess(number: int, http: httpx.Client) -> httpx.Response:
        return http.get("/v1/models", headers={"authorization": f"Bearer {number}"})

    found = target.at_once(guess, 2000)
    written = target.server.log.stat().st_size - before
    counts = ", ".join(f"{count} of {status}" for status, count in found.items())
    return f"{counts}, " + ("less than 100 KB of log" if written < 100_000 else f"{written} bytes of log")


@_case("a key that may ask loads, replaces and unloads, under eight spellings", "never")
def _changes(target: Target) -> str:
    headers = {"x-http-method-override": "DELETE", "authorization": f"Bearer {CLIENT}"}
    tried = [
        target.post({"name": "a", "path": "a"}, path="/v1/adapters"),
        target.post({"name": "a", "path": "a"}, path="/v1/adapters/"),
        target.post({"name": "a", "path": "a"}, path="/v1//adapters"),
        target.post({"name": "a", "path": "a"}, path="/v1/%61dapters"),
        target.http.put("/v1/adapters/triage", json={"path": "a"}),
        target.http.delete("/v1/adapters/triage"),
        target.http.delete("/V1/adapters/triage"),
        target.http.get("/v1/adapters/triage", headers=headers),
    ]
    changed = [str(response.url) for response in tried[:-1] if response.status_code not in (403, 404)]
    return f"changed by {changed}" if changed or target.ask().status_code != 200 else "never"


@_case(
    "a bound key asks for, looks at and lists what it is not bound to",
    "404 unknown_adapter, 404 unknown_adapter, 0 listed",
)
def _bound(target: Target) -> str:
    asked = target.post({"inputs": [{"prompt": "a", "adapter": "triage"}]}, key=BOUND).json()["predictions"][0]
    headers = {"authorization": f"Bearer {BOUND}"}
    card = target.http.get("/v1/adapters/triage", headers=headers)
    listed = target.http.get("/v1/adapters", headers=headers).json()["data"]
    return f"404 {asked['error']['code']}, {said(card)}, {len(listed)} listed"


@_case("an outcome of an id with a line break", "404 unknown_prediction")
def _broken_id(target: Target) -> str:
    return _tell(target, target.ask().json()["id"] + "\n", "billing")


@_case("an outcome of an id of a megabyte", "422 invalid_length")
def _long_id(target: Target) -> str:
    return _tell(target, "p" * 1_000_000, "billing")


@_case("an outcome in the other form of its letters", "422 label_not_offered")
def _decomposed(target: Target) -> str:
    answer = target.ask(choices=["r\u00e9clamation", "autre"], policy=ANY).json()
    return _tell(target, answer["id"], unicodedata.normalize("NFD", "r\u00e9clamation"))


@_case("a letter with 30,000 marks for an outcome", "422 label_not_offered")
def _marked(target: Target) -> str:
    return _tell(target, target.ask().json()["id"], "a" + "\u0315\u0300" * 15_000)


@_case("one outcome told 1,000 times, right and wrong by turns", "1000 of 200, counted once")
def _told(target: Target) -> str:
    answer = target.ask(prompt="I was charged twice for my subscription").json()
    before = target.metrics("blora_outcomes_total")
    labels = ["billing", "security"]

    def tell(number: int) -> str:
        return _tell(target, answer["id"], labels[number % 2])

    found = Counter(map(tell, range(1000)))
    counted = target.metrics("blora_outcomes_total") - before
    counts = ", ".join(f"{count} of {status}" for status, count in found.items())
    return f"{counts}, counted {'once' if counted == 1 else f'{counted:g} times'}"


@_case("20 clients tell one outcome at the same moment", "20 of 200, counted once")
def _told_at_once(target: Target) -> str:
    answer = target.ask(prompt="I was charged twice for my subscription").json()
    before = target.metrics("blora_outcomes_total")
    outcome = {"prediction_id": answer["id"], "label": "billing"}
    found = target.at_once(lambda number, http: http.post("/v1/feedback", json=outcome), 20)
    counted = target.metrics("blora_outcomes_total") - before
    counts = ", ".join(f"{count} of {status}" for status, count in found.items())
    return f"{counts}, counted {'once' if counted == 1 else f'{counted:g} times'}"


CASES: Sequence[Case] = [
    *NEARLY,
    *FILES,
    *(_rewritten, _guessed, _changes, _bound),
    _of_another(OTHER, "404 unknown_prediction"),
    _of_another(OWNER, "200"),
    *(_broken_id, _long_id, _decomposed, _marked, _told, _told_at_once),
]
