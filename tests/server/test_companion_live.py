"""A head that reads a real sentence encoder beside the embedded model, served by `blora serve` in a subprocess."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest

import blora
from benchmarks.server_process import TRIAGE, Server, serve
from tests.sentences import SENTENCES, needs_sentences
from tests.server.test_encoder_live import tickets, trained

pytestmark = [pytest.mark.model, needs_sentences]

BOTH = f"embedded+{SENTENCES}"
CPU = {"base_model": BOTH, "device": "cpu", "dtype": "float32"}
N_TRAIN, N_ASKED = 300, 40


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = ("--base-model", BOTH, "--device", "cpu", "--dtype", "float32")
    return trained(tmp_path_factory.mktemp("queues"), *where, n_train=N_TRAIN)


@pytest.fixture(scope="module")
def live(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The adapter beside one of the embedded model alone, which knows no companion."""
    adapters = f"queues={adapter},urgent={TRIAGE / 'adapter.urgent'}"
    with serve(tmp_path_factory.mktemp("live") / "log", adapters=adapters, default_adapter="queues", **CPU) as running:
        yield running


def ask(live: Server, **asked: Any) -> dict[str, Any]:
    answer = httpx.post(f"{live.url}/v1/predict", json=asked, timeout=60)
    assert answer.status_code == 200, answer.text
    found: dict[str, Any] = answer.json()
    return found


def probabilities(answer: dict[str, Any]) -> dict[str, float]:
    return {entry["choice"]: entry["probability"] for entry in answer["probabilities"]}


def test_the_server_answers_in_batches_as_this_process_does_alone(adapter: Path, live: Server) -> None:
    rows = tickets("test", N_ASKED)
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda row: ask(live, prompt=row["prompt"]), rows))
    assert sum(answer["top_choice"] == row["label"] for answer, row in zip(answers, rows, strict=True)) > 0.6 * N_ASKED
    model = blora.load(adapter, **CPU)
    for answer, row in zip(answers[:20], rows, strict=False):
        own = model.predict(row["prompt"])
        expected = {entry.choice: entry.probability for entry in own.probabilities}
        assert probabilities(answer) == pytest.approx(expected, abs=1e-4)
        assert answer["familiarity"] == pytest.approx(own.familiarity, abs=0.02)


def test_an_adapter_of_the_base_model_alone_answers_beside_it_as_it_does_there(live: Server) -> None:
    alone = blora.load(TRIAGE / "adapter.urgent", base_model="embedded", device="cpu", dtype="float32")
    for row in tickets("test", 5):
        own = {entry.choice: entry.probability for entry in alone.predict(row["prompt"]).probabilities}
        found = probabilities(ask(live, prompt=row["prompt"], adapter="urgent"))
        assert found == pytest.approx(own, abs=1e-4)


@pytest.mark.parametrize(
    "asked",
    [
        {"messages": [{"role": "user", "content": "I was charged twice for one month."}]},
        {"prompt": "I was charged twice for one month.", "choices": ["a complaint", "a compliment"]},
        {"prompt": "I was charged twice for one month. " * 200},
    ],
    ids=["a chat", "choices of its own", "a text beyond the companion's positions"],
)
def test_it_answers_whatever_the_base_model_can_read(asked: dict[str, Any], live: Server) -> None:
    assert sum(probabilities(ask(live, **asked)).values()) == pytest.approx(1)


def test_the_server_names_the_companion(live: Server) -> None:
    assert httpx.get(f"{live.url}/info", timeout=60).json()["model"]["companion"] == SENTENCES.name
    cards = {name: httpx.get(f"{live.url}/v1/adapters/{name}", timeout=60).json() for name in ("queues", "urgent")}
    assert cards["queues"]["companion"] == SENTENCES.name
    assert cards["urgent"]["companion"] is None
