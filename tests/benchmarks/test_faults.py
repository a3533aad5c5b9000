"""What a server is put through, in small: the benchmarks of docs/faults.md, against a real server."""

import asyncio
import json
from collections.abc import Iterator
from email.message import Message
from pathlib import Path

import pytest

from benchmarks.faults import churn, killed, saturation, tables
from benchmarks.faults.generated import made_up
from benchmarks.faults.tiny_server import tiny_server
from benchmarks.server_process import Server


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with tiny_server(tmp_path_factory.mktemp("tiny"), max_inputs="16") as running:
        yield running


def test_no_request_that_the_document_allows_makes_it_fail(live: Server) -> None:
    found = made_up(live, 200)
    assert found["wrong"] == []
    assert found["server_errors"] == 0
    assert found["cases"] >= 200
    assert found["statuses"]["POST /v1/predict"]["200"] >= 50


def test_adapters_that_come_and_go_lose_and_mix_no_answer(live: Server) -> None:
    found = asyncio.run(churn.measure(live, 400, seconds=0))
    assert found["without_an_outcome"] == 0
    assert found["outcomes"].keys() <= {
        "its own answer",
        "not waited for",
        "refused, for its adapter was unloaded",
        "refused, for it was nonsense",
    }
    assert found["outcomes"]["its own answer"] >= 200
    assert found["reloads"] > 0


def test_rows_that_are_lost_doubled_or_mixed_up_are_counted(tmp_path: Path) -> None:
    def line(row: int, confidence: float) -> str:
        both = [{"choice": "yes", "probability": confidence}, {"choice": "no", "probability": 1 - confidence}]
        return json.dumps({"row": row, "prediction": {"probabilities": both}}) + "\n"

    n = len(killed.QUESTIONS)
    (tmp_path / "undisturbed").write_text("".join(line(k, k / n) for k in range(n)))
    whole = [line(row, (row % n) / n) for row in range(2 * n)]
    (tmp_path / "output").write_text("".join(whole))
    found = killed.kept(tmp_path / "output", tmp_path / "undisturbed", 2 * n)
    assert found == {"once": 2 * n, "never": 0, "more_than_once": 0, "anothers_answer": 0, "in_order": True}
    whole[3:5] = [whole[5], line(4, 0.9)]
    (tmp_path / "output").write_text("".join(whole))
    found = killed.kept(tmp_path / "output", tmp_path / "undisturbed", 2 * n)
    assert found == {"once": 2 * n - 2, "never": 1, "more_than_once": 1, "anothers_answer": 1, "in_order": False}


def test_the_errors_of_clients_that_wait_are_in_the_table() -> None:
    seen = saturation.Seen()
    for status, count in ((200, 90), (429, 7), (500, 1)):
        for _ in range(count):
            seen.add((status, Message()), seconds=1.0)
    for _ in range(3):
        seen.add(None, seconds=1.0)
    result = json.loads(saturation.RESULT.read_text())
    result["waiting_clients"] = [result["waiting_clients"][0] | seen.outcomes()]
    assert tables.saturation(result).splitlines()[2].endswith("| 7 | 1 | 3 |")
