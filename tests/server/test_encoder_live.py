"""A head on a real sentence encoder, trained by the command and served by `blora serve` in a subprocess."""

import hashlib
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import blora
from benchmarks.server_process import TRIAGE, Server, serve
from blora.cli import main
from tests.sentences import SENTENCES, needs_sentences

pytestmark = [pytest.mark.model, needs_sentences]

# Of the weights as their authors published them.
DIGEST = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
N_TRAIN, N_TEST = 600, 100
CPU = ("--base-model", str(SENTENCES), "--device", "cpu", "--dtype", "float32")


def tickets(name: str, n: int) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (TRIAGE / f"{name}.jsonl").read_text().splitlines()]
    return rows[:: max(1, len(rows) // n)][:n]


def trained(folder: Path, *more: str, n_train: int = N_TRAIN) -> Path:
    """An adapter of some of the demo's tickets, made by the command."""
    for name, n in (("train", n_train), ("validation", n_train // 3)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in tickets(name, n)))
    data = ("--data", str(folder / "train.jsonl"), "--validation", str(folder / "validation.jsonl"))
    assert main(["train", *data, *more, "--output", str(folder / "queues")]) == 0
    return folder / "queues"


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trained(tmp_path_factory.mktemp("queues"), *CPU, "--min-familiarity", "0.05")


@pytest.fixture(scope="module")
def live(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    flags = {"adapters": f"queues={adapter}", "base_model": str(SENTENCES), "device": "cpu", "dtype": "float32"}
    with serve(tmp_path_factory.mktemp("live") / "log", **flags) as running:
        yield running


def test_the_weights_are_the_published_ones() -> None:
    assert hashlib.sha256((SENTENCES / "model.safetensors").read_bytes()).hexdigest() == DIGEST


def test_the_server_answers_in_batches_as_this_process_does_alone(adapter: Path, live: Server) -> None:
    rows = tickets("test", N_TEST)

    def ask(row: dict[str, Any]) -> dict[str, Any]:
        answer: dict[str, Any] = httpx.post(f"{live.url}/v1/predict", json={"prompt": row["prompt"]}, timeout=60).json()
        return answer

    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(ask, rows))
    right = sum(answer["top_choice"] == row["label"] for answer, row in zip(answers, rows, strict=True))
    assert right > 0.6 * N_TEST  # of seven queues
    model = blora.load(adapter, base_model=str(SENTENCES), device="cpu", dtype="float32")
    for answer, row in zip(answers[:20], rows, strict=False):
        own = model.predict(row["prompt"])
        found = {entry["choice"]: entry["probability"] for entry in answer["probabilities"]}
        assert found == pytest.approx({entry.choice: entry.probability for entry in own.probabilities}, abs=1e-4)
        assert answer["familiarity"] == pytest.approx(own.familiarity, abs=0.02)


def test_a_question_from_elsewhere_is_withheld_as_unfamiliar(live: Server) -> None:
    asked = {"prompt": "Boil the potatoes for twenty minutes, then fry the onions in butter until they are golden."}
    answer = httpx.post(f"{live.url}/v1/predict", json=asked, timeout=60).json()
    assert answer["answer"] is None
    assert "unfamiliar_question" in [reason["reason"] for reason in answer["abstain_reasons"]]


@pytest.mark.parametrize(
    ("asked", "status", "param"),
    [
        ({"prompt": "It is broken.", "choices": ["yes", "no"]}, 422, "choices"),
        ({"prompt": "It is broken.", "scoring": "label"}, 422, "choices"),
        ({"messages": [{"role": "user", "content": "It is broken."}]}, 422, "messages"),
        ({"prompt": "broken " * 600}, 413, "prompt"),
    ],
)
def test_what_an_encoder_cannot_read_is_refused(asked: dict[str, Any], status: int, param: str, live: Server) -> None:
    answer = httpx.post(f"{live.url}/v1/predict", json=asked, timeout=60)
    assert answer.status_code == status
    assert answer.json()["error"]["param"] == param


def test_the_server_says_that_the_model_is_an_encoder(live: Server) -> None:
    model = httpx.get(f"{live.url}/info", timeout=60).json()["model"]
    assert "it is an encoder" in model["runs_whole_because"]
    assert model["max_length"] == 512
