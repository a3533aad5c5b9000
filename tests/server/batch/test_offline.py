"""Files of questions answered without HTTP, interrupted and continued."""

import gc
import json
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from blora.errors import AdapterError, BaseModelError, ConfigError
from blora.server.batch.offline import AHEAD, MOST_FAILURES, answer_file, patient, rows_done
from blora.server.batch.rows import QuestionRow
from blora.server.engines.protocol import Job, Outcome
from blora.server.errors import InvalidRequestError
from blora.server.scheduling.control import Control
from blora.server.settings import Settings
from tests.server.fakes import FakeEngine
from tests.server.monitoring.test_drift import GATED

SETTINGS = Settings(default_adapter="triage", max_queue_tokens=2**30, max_queue_requests=2**20)


def questions(n: int, read: list[int] | None = None) -> Iterator[QuestionRow]:
    for k in range(n):
        if read is not None:
            read.append(k)
        yield QuestionRow({"prompt": f"p={0.5 + k / (2 * n):.6f}"})


def rows(output: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in output.read_text().splitlines()]


async def answer(output: Path, asked: Iterable[QuestionRow], **fields: Any) -> int:
    return await answer_file(SETTINGS, FakeEngine(), iter(asked), output, fields=fields)


async def test_each_row_has_its_answer_in_its_place(tmp_path: Path) -> None:
    output, told = tmp_path / "out", list[int]()
    engine = FakeEngine()
    n_rows = await answer_file(SETTINGS, engine, questions(1500), output, fields={"n_samples": 2}, done=told.append)
    assert (n_rows, told) == (1500, [0] + [1] * 1500)
    for k, row in enumerate(rows(output)):
        assert row["row"] == k
        assert row["prediction"]["probabilities"][0]["probability"] == pytest.approx(0.5 + k / 3000, abs=1e-6)
        assert row["prediction"]["n_samples"] == 2
    assert max(len(batch) for batch in engine.batches) > 10


async def test_a_bad_row_has_its_error_and_no_other(tmp_path: Path) -> None:
    bad: list[dict[str, Any]] = [{}, {"prompt": "UNPACKABLE"}, {"prompt": "p=0.9", "choices": ["a"]}]
    await answer(tmp_path / "out", map(QuestionRow, [{"prompt": "p=0.9"}, *bad, {"prompt": "p=0.9"}]))
    found = rows(tmp_path / "out")
    assert [row.get("error", {}).get("code") for row in found] == [
        None,
        "missing",
        "invalid_prompt",
        "invalid_length",
        None,
    ]
    assert [row["row"] for row in found] == list(range(5))


async def test_a_row_whose_policy_needs_more_draws_has_an_error(tmp_path: Path) -> None:
    informed = {"max_mutual_information": 0.01}
    await answer(tmp_path / "out", [QuestionRow({"prompt": "p=0.9"})], policy=informed, n_samples=1)
    [row] = rows(tmp_path / "out")
    assert row["error"]["param"] == "n_samples"


async def test_a_row_whose_policy_no_familiarity_can_fail_has_an_error(tmp_path: Path) -> None:
    engine, asked = FakeEngine(handles=(GATED,)), [QuestionRow({"prompt": "p=0.95 f=0.01"})]
    for limit in (0.01, 0.011):  # among 99 rows no familiarity is below 0.01
        fields = {"policy": {"min_familiarity": limit}}
        await answer_file(SETTINGS, engine, iter(asked), tmp_path / f"{limit}", fields=fields)
    [refused], [withheld] = rows(tmp_path / "0.01"), rows(tmp_path / "0.011")
    assert (refused["error"]["param"], withheld["prediction"]["abstained"]) == ("policy.min_familiarity", True)


async def test_a_row_keeps_its_own_id(tmp_path: Path) -> None:
    asked = {"prompt": "p=0.9"}
    bad = QuestionRow(error=InvalidRequestError("got a line that is not JSON", code="invalid_json"))
    await answer(tmp_path / "out", [QuestionRow(asked, "x-1"), QuestionRow(asked), bad, QuestionRow(asked, "\ud800")])
    found = rows(tmp_path / "out")
    assert [row.get("id") for row in found] == ["x-1", None, None, "\ud800"]
    assert found[2]["error"]["code"] == "invalid_json"
    assert rows_done(tmp_path / "out") == 4


async def test_an_id_that_is_not_json_is_left_out(tmp_path: Path) -> None:
    deep: list[object] = []
    for _ in range(10_000):
        deep = [deep]
    bad: list[object] = [math.nan, {"a": [math.inf]}, [math.nan], deep]
    await answer(tmp_path / "out", [QuestionRow({"prompt": "p=0.9"}, given) for given in (*bad, 2.5, {"a": [1]})])
    assert [row.get("id") for row in rows(tmp_path / "out")] == [None] * 4 + [2.5, {"a": [1]}]


async def test_a_policy_withholds_as_in_the_server(tmp_path: Path) -> None:
    await answer(tmp_path / "out", questions(10), policy={"min_confidence": 0.75})
    assert [row["prediction"]["abstained"] for row in rows(tmp_path / "out")] == [True] * 5 + [False] * 5


@pytest.mark.parametrize("cut", [0, 1, 20, 10**9])
async def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path: Path, cut: int) -> None:
    output = tmp_path / "out"
    await answer(output, questions(100))
    whole = output.read_bytes()
    lines = whole.splitlines(keepends=True)
    output.write_bytes(b"".join(lines[:40]) + lines[40][: min(cut, len(lines[40]))])
    kept = 41 if cut > len(lines[40]) else 40
    assert rows_done(output) == kept
    told: list[int] = []
    await answer_file(SETTINGS, FakeEngine(), questions(100), output, fields={}, done=told.append)
    assert told == [kept] + [1] * (100 - kept)
    found = rows(output)
    assert [row["row"] for row in found] == list(range(100))
    again = [row["prediction"]["probabilities"] for row in found]
    assert again == [row["prediction"]["probabilities"] for row in map(json.loads, lines)]


async def test_a_finished_file_stays_as_it_is(tmp_path: Path) -> None:
    await answer(tmp_path / "out", questions(10))
    before = (tmp_path / "out").read_bytes()
    assert await answer(tmp_path / "out", questions(10)) == 10
    assert (tmp_path / "out").read_bytes() == before


async def test_rows_are_read_as_they_are_needed(tmp_path: Path) -> None:
    read: list[int] = []

    def watch(_: int) -> None:
        n_written = len((tmp_path / "out").read_text().splitlines()) if (tmp_path / "out").exists() else 0
        assert len(read) <= n_written + AHEAD

    await answer_file(SETTINGS, FakeEngine(), questions(2000, read), tmp_path / "out", fields={}, done=watch)
    assert len(read) == 2000


async def test_a_file_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("important\n")
    with pytest.raises(ConfigError, match="whose line 1 is not an answer to row 0"):
        await answer(tmp_path / "out", questions(1))
    assert (tmp_path / "out").read_text() == "important\n"


@pytest.mark.parametrize(("kept", "line"), [([0, 2, 3], 2), ([0, 1, 1, 2], 3)])
async def test_a_file_with_a_line_lost_or_doubled_is_left_alone(tmp_path: Path, kept: list[int], line: int) -> None:
    output = tmp_path / "out"
    await answer(output, questions(4))
    lines = output.read_bytes().splitlines(keepends=True)
    before = b"".join(lines[row] for row in kept)
    output.write_bytes(before)
    with pytest.raises(ConfigError, match=f"got {output}, whose line {line} is not an answer to row {line - 1}, exp"):
        await answer(output, questions(6))
    assert output.read_bytes() == before


async def test_what_cannot_be_loaded_is_told(tmp_path: Path) -> None:
    engine = FakeEngine(load_error=AdapterError("got no such folder"))
    with pytest.raises(ConfigError, match="got no such folder"):
        await answer_file(SETTINGS, engine, questions(1), tmp_path / "out", fields={})


async def test_a_device_that_is_lost_ends_the_run_and_leaves_its_rows_to_the_next(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Losing(FakeEngine):
        async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
            self.lost = self.lost or "CUDA error: uncorrectable ECC error encountered"
            raise RuntimeError(self.lost)

    output = tmp_path / "answers.jsonl"
    with pytest.raises(BaseModelError, match="got 'CUDA error: uncorrectable ECC error encountered' from the device"):
        await answer_file(SETTINGS, Losing(), questions(5), output, fields={})
    assert rows(output) == []
    gc.collect()  # of tasks whose exception nobody asked for, asyncio tells when they are freed
    assert [record for record in caplog.records if record.name == "asyncio"] == []
    assert await answer(output, questions(5)) == 5
    assert all("prediction" in row for row in rows(output))


class Failing(FakeEngine):
    """An engine without memory for a pass."""

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        raise MemoryError


async def test_rows_at_the_end_on_which_the_model_failed_are_asked_again(tmp_path: Path) -> None:
    output = tmp_path / "out"
    assert await answer_file(SETTINGS, FakeEngine(), questions(2), output, fields={}) == 2
    assert await answer_file(SETTINGS, Failing(), questions(5), output, fields={}) == 5
    assert [row.get("error", {}).get("code") for row in rows(output)] == [None, None, *["model_failure"] * 3]
    asked: list[int] = []
    assert await answer_file(SETTINGS, FakeEngine(), questions(5), output, fields={}, done=asked.append) == 5
    assert asked == [2, 1, 1, 1]
    assert [(row["row"], "prediction" in row) for row in rows(output)] == [(k, True) for k in range(5)]


async def test_a_bad_row_at_the_end_is_not_asked_again(tmp_path: Path) -> None:
    output, bad = tmp_path / "out", QuestionRow({"prompt": "UNPACKABLE"})
    await answer(output, [bad])
    before = output.read_bytes()
    await answer(output, [bad])
    assert output.read_bytes() == before


async def test_many_failures_in_succession_end_the_run(tmp_path: Path) -> None:
    output = tmp_path / "out"
    with pytest.raises(BaseModelError, match=f"got {MOST_FAILURES} failures in succession .model_failure: The model"):
        await answer_file(SETTINGS, Failing(), questions(600), output, fields={})
    assert len(rows(output)) == MOST_FAILURES
    assert await answer_file(SETTINGS, FakeEngine(), questions(600), output, fields={}) == 600
    assert all("prediction" in row for row in rows(output))


def test_a_servers_environment_has_no_effect_on_offline_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_DEFAULT_ADAPTER", "triage")
    monkeypatch.setenv("BLORA_FEEDBACK_REDIS", "redis://live:6379/0")
    monkeypatch.setenv("BLORA_MAX_PROMPT_TOKENS", "none")
    given = patient(adapters=("mine=/adapters/mine",), max_batch_tokens=512)
    assert (given.default_adapter, given.feedback_redis, given.max_batch_tokens) == (None, None, 512)
    assert Settings(max_prompt_tokens=1).feedback_redis == "redis://live:6379/0"


def test_an_offline_setting_out_of_range_is_told_in_a_line() -> None:
    with pytest.raises(ConfigError, match=r"^--max-batch-tokens: Input should be greater than or equal to 1$"):
        patient(max_batch_tokens=0)


@pytest.mark.parametrize(("texts", "drifts"), [(["one text"] * 20, 0), ([f"text {k}" for k in range(20)], 1)])
async def test_rows_about_one_text_are_one_sign_of_drift(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, texts: list[str], drifts: int
) -> None:
    asked = (QuestionRow({"prompt": f"p=0.95 f=0.01 {text}"}) for text in texts)
    await answer_file(SETTINGS, FakeEngine(handles=(GATED,)), asked, tmp_path / "out", fields={})
    assert sum(record.message == "drift_noticed" for record in caplog.records) == drifts
