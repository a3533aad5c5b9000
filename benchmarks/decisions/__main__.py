"""How well and how fast do decision servers answer the same requests, trained on the same rows and base model?

`python -m benchmarks.decisions --any2jev PROGRAM` trains an adapter for each of the demo's three questions, one adapter
for any question, and any2jev 0.1 for all three on the 540 tickets of `moods/train.jsonl`, asks each server POST
/v1/systemone about the test tickets, and times them in turn. Trained models stay in the work folder and are used again.
any2jev has an environment of its own: `pip install 'any2jev[serve]==0.1.0' 'transformers<5'`.
"""

import argparse
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from statistics import fmean, median
from typing import Any

import httpx

from benchmarks.decisions.asking import (
    Row,
    answers,
    ask,
    labelled_request_of,
    labels,
    probabilities,
    questions_of,
    read_rows,
)
from benchmarks.decisions.figures import quality
from benchmarks.decisions.servers import serve_any2jev, serve_blora, serve_open, train_any2jev, train_blora, train_open
from benchmarks.peers.figures import DELTA
from benchmarks.result_files import about, write
from benchmarks.server_process import QUESTIONS, ROOT

# Name of `blora serve` with one adapter for any question.
OPEN = "blora, open"
RESULT = ROOT / "benchmarks" / "results" / "decisions" / "beside_any2jev.json"
N_TIMED, N_CLIENTS, N_REQUESTS = 20, 32, 128
# Tickets in a text to time, about 300 tokens.
N_TICKETS = 15


def judge(client: httpx.Client, rows: dict[str, list[Row]]) -> dict[str, Any]:
    """Return a server's figures for each question, and how often it answers otherwise if choices are reversed."""
    asked = questions_of(list(QUESTIONS))
    test, proof = answers(client, rows["test"], asked), answers(client, rows["proof"], asked)
    turned = answers(client, rows["test"], questions_of(["queue"], turned=True))
    flips = [a["queue"]["choice"] != b["queue"]["choice"] for a, b in zip(test, turned, strict=True)]
    return {
        "flips": fmean(flips),
        "questions": {
            name: quality(
                probabilities(test, name),
                labels(rows["test"], name),
                (probabilities(proof, name), labels(rows["proof"], name)),
            )
            for name in QUESTIONS
        },
    }


def time_questions(clients: dict[str, httpx.Client], rows: Sequence[Row]) -> dict[str, dict[str, float]]:
    """Return the median milliseconds of requests with 1, 3 and 12 questions about one text, servers in turn."""
    numbers = {1: ["queue"], 3: list(QUESTIONS), 12: [f"{name}{k}" for k in range(1, 5) for name in QUESTIONS]}
    found: dict[str, dict[int, list[float]]] = {server: {n: [] for n in numbers} for server in clients}
    for turn in range(-2, N_TIMED):
        for server, client in clients.items():
            for n, names in numbers.items():
                text = f"[{turn} {n}] " + " ".join(row.prompt for row in rows[(turn + 2) * 7 :][:N_TICKETS])
                seconds = _timed(lambda client=client, text=text, names=names: ask(client, text, questions_of(names)))
                if turn >= 0:  # the first ones warm up
                    found[server][n].append(seconds)
    return {server: {str(n): 1e3 * median(times) for n, times in of.items()} for server, of in found.items()}


def throughput(client: httpx.Client, rows: Sequence[Row]) -> float:
    """Return the questions a second that a server answers to 32 clients, three questions a request."""
    asked = questions_of(list(QUESTIONS))
    texts = [row.prompt for row in rows][:N_REQUESTS]
    with ThreadPoolExecutor(N_CLIENTS) as threads:
        seconds = _timed(lambda: list(threads.map(lambda text: ask(client, text, asked), texts)))
    return len(texts) * len(asked) / seconds


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def main() -> None:
    """Train, ask, time and keep the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--any2jev", type=Path, required=True, help="the program any2jev of its own environment")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "decisions")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    rows = {name: read_rows(name) for name in ("train", "validation", "proof", "test")}
    labelled = {name: rows[name] for name in ("train", "validation")}
    requests = {name: map(labelled_request_of, part) for name, part in labelled.items()}
    seconds = {
        "blora": train_blora(work),
        OPEN: train_open(work, labelled),
        "any2jev": train_any2jev(arguments.any2jev, work, requests),
    }
    with ExitStack() as stack:
        urls = {
            "blora": stack.enter_context(serve_blora(work)),
            OPEN: stack.enter_context(serve_open(work)),
            "any2jev": stack.enter_context(serve_any2jev(arguments.any2jev, work)),
        }
        limits = httpx.Limits(max_connections=N_CLIENTS)
        clients = {
            server: stack.enter_context(httpx.Client(base_url=url, timeout=600, limits=limits))
            for server, url in urls.items()
        }
        judged = {server: judge(client, rows) for server, client in clients.items()}
        times = time_questions(clients, rows["proof"])
        rates = {server: throughput(client, rows["proof"]) for server, client in clients.items()}
    servers = [
        {
            "server": server,
            "seconds": seconds[server],
            "ms": times[server],
            "per_second": rates[server],
            **judged[server],
        }
        for server in urls
    ]
    sizes = {name: len(part) for name, part in rows.items()}
    result = {"servers": servers, "rows": sizes, "delta": DELTA, "n_clients": N_CLIENTS}
    write(RESULT, result | about("python -m benchmarks.decisions --any2jev PROGRAM"))


if __name__ == "__main__":
    main()
