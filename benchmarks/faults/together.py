"""Can one key's worst requests, all at once, keep another key's questions waiting?

`python -m benchmarks.faults.together` serves the demo. A victim asks ordinary questions one after another, first of an
idle server and then while an attacker, in a process of its own, sends again and again, with one key: a question of 64
long choices, which is hours of a single core's work in a few bytes; 40 prompts of 980 KB; eight bodies of 1 MB that are
lists of nothing; and the name of an adapter folder in which a pipe stands in the place of a file.
"""

import argparse
import asyncio
import contextlib
import json
import multiprocessing
import os
import shutil
import socket
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import httpx

from benchmarks.result_files import about, write
from benchmarks.server_process import ADAPTER, ROOT, Server, serve
from blora.server.keys import line_of, new_key

RESULT = ROOT / "benchmarks" / "results" / "together" / "result.json"
ATTACKER, VICTIM = new_key(), new_key()
QUESTIONS = 100
VOLLEYS, VOLLEY_EVERY_S = 6, 10.0

HEAVY = json.dumps(
    {
        "prompt": "x",
        "choices": [f"{i} " + "word " * 58 + "w" for i in range(64)],
        "policy": {"min_confidence": 0},
    }
)
LONG = json.dumps({"prompt": "refund please " * 70_000})
LISTS = '{"messages":[' + "{}," * 340_000 + "{}]}"
STALLED = json.dumps({"name": "stalled", "path": "stalled"})


def _request(key: str, path: str, body: str) -> bytes:
    head = f"POST {path} HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\ncontent-type: application/json\r\n"
    return f"{head}content-length: {len(body)}\r\nconnection: close\r\n\r\n{body}".encode()


def _send(url: str, request: bytes) -> None:
    """Send a request and read what comes back, as cheaply as can be: an attacker has a machine of its own."""
    address = httpx.URL(url)
    with contextlib.suppress(OSError), socket.create_connection((address.host, address.port)) as connection:
        connection.sendall(request)
        while connection.recv(65536):
            pass


def attack(url: str, key: str) -> None:
    """Send everything at once, and again after a while, whatever is answered."""
    bodies = [HEAVY, *[LONG] * 40, *[LISTS] * 8]
    requests = [_request(key, "/v1/predict", body) for body in bodies]
    requests.append(_request(key, "/v1/adapters", STALLED))
    for _ in range(VOLLEYS):
        for request in requests:
            threading.Thread(target=_send, args=(url, request), daemon=True).start()
        time.sleep(VOLLEY_EVERY_S)


async def ask(server: Server, seconds: float, n_questions: int) -> dict[str, Any]:
    """Ask for so long, and so often at least; return seconds of answers and of /livez, and what was not answered."""
    answers: list[float] = []
    alive: list[float] = []
    failures: list[str] = []
    headers = {"authorization": f"Bearer {VICTIM}"}
    began = time.monotonic()

    async def look(client: httpx.AsyncClient) -> None:
        while True:
            at = time.monotonic()
            (await client.get("/livez")).raise_for_status()
            alive.append(time.monotonic() - at)
            await asyncio.sleep(0.1)

    async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=60) as client:
        looking = asyncio.create_task(look(client))
        k = 0
        while k < n_questions or time.monotonic() - began < seconds:
            at = time.monotonic()
            response = await client.post("/v1/predict", json={"prompt": f"Where is the invoice of order {k}?"})
            answers.append(time.monotonic() - at)
            if response.status_code != 200:
                failures.append(str(response.json()["error"]["code"]))
            k += 1
        if looking.done():
            looking.result()
        looking.cancel()
    return {
        "questions": len(answers),
        "failures": failures,
        "median_s": quantile(answers, 0.5),
        "p99_s": quantile(answers, 0.99),
        "livez_worst_s": max(alive),
    }


def quantile(values: list[float], q: float) -> float:
    """Return the least value that a share q of all values does not exceed.

    >>> quantile([3.0, 1.0, 2.0, 4.0], 0.5)
    2.0
    """
    return sorted(values)[max(0, -int(-q * len(values) // 1) - 1)]


def stalled_folder(root: Path) -> None:
    """Make an adapter with a pipe, into which nobody writes, in the place of its calibration."""
    folder = root / "stalled"
    shutil.copytree(ADAPTER, folder)
    (folder / "calibration.json").unlink()
    os.mkfifo(folder / "calibration.json")


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keys = folder / "keys"
        keys.write_text("\n".join([line_of("attacker", "admin", ATTACKER), line_of("victim", "predict", VICTIM)]))
        stalled_folder(folder / "adapters")
        with serve(folder / "log", api_keys=str(keys), adapter_root=str(folder / "adapters")) as server:
            idle = asyncio.run(ask(server, 0, QUESTIONS))
            attacker = multiprocessing.get_context("spawn").Process(target=attack, args=(server.url, ATTACKER))
            attacker.start()
            beside = asyncio.run(ask(server, VOLLEYS * VOLLEY_EVERY_S, QUESTIONS))
            attacker.join()
    result = {
        "idle": idle,
        "beside": beside,
        "ratio_of_p99": beside["p99_s"] / idle["p99_s"],
        "volleys": VOLLEYS,
        "volley_every_s": VOLLEY_EVERY_S,
        **about("python -m benchmarks.faults.together"),
    }
    write(arguments.json, result)


if __name__ == "__main__":
    main()
