"""`blora predict` in a subprocess, on a tiny model."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.server_process import ADAPTER, TRIAGE
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import CHOICES, write_adapter

N_ROWS = 3000


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    tiny_model().save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    write_adapter(root / "tickets v2", root / "tiny", seed=1)
    rows = ({"id": f"t-{k}", "prompt": f"question {k}" + "?" * (k % 40), "label": 0} for k in range(N_ROWS))
    (root / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


def command(folder: Path, output: Path, *flags: str, questions: Path | None = None) -> list[str]:
    return [
        *(sys.executable, "-m", "blora.cli", "predict", str(questions or folder / "rows.jsonl"), str(output)),
        *("--adapter", str(folder / "tickets v2"), "--base-model", str(folder / "tiny"), "--device", "cpu", *flags),
    ]


def answer(folder: Path, output: Path, *flags: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command(folder, output, *flags), capture_output=True, text=True, timeout=300)


def test_a_run_that_is_killed_twice_has_each_row_once(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    n_rows: list[int] = []
    for goal in (500, 1500):
        process = subprocess.Popen(command(folder, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while not output.exists() or output.read_bytes().count(b"\n") < goal:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        n_rows.append(output.read_bytes().count(b"\n"))
    assert 500 <= n_rows[0] < n_rows[1] < N_ROWS
    done = answer(folder, output)
    assert (done.returncode, done.stdout) == (
        0,
        f"{output} has the answers to {N_ROWS} of {N_ROWS} rows, and errors for 0\n",
    )
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["row"], row["id"]) for row in found] == [(k, f"t-{k}") for k in range(N_ROWS)]
    assert all({entry["choice"] for entry in row["prediction"]["probabilities"]} == set(CHOICES) for row in found)
    assert {row["prediction"]["adapter"]["name"] for row in found} == {"tickets-v2"}
    prompts = [row["prediction"]["usage"]["prompt_tokens"] for row in found]
    assert [b - a for a, b in pairwise(prompts[100:140])] == [1] * 19 + [-39] + [1] * 19


def test_a_second_run_on_an_output_ends_at_once_and_the_first_one_goes_on(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    first = subprocess.Popen(command(folder, output), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not output.exists() or output.read_bytes().count(b"\n") < 100:
            assert first.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        second = answer(folder, output)
        assert (second.returncode, second.stderr) == (
            1,
            f"blora predict: got {output}, which another run is writing, expected one run at a time: wait until that run "
            "has ended, or name another output\n",
        )
        first.send_signal(signal.SIGCONT)
        assert first.wait(timeout=300) == 0
    finally:
        first.kill()
        first.wait()
    assert [json.loads(line)["row"] for line in output.read_text().splitlines()] == list(range(N_ROWS))


@pytest.mark.model
def test_a_drift_is_told_in_a_sentence_at_the_end(tmp_path: Path) -> None:
    rows, output = TRIAGE / "out_of_scope.jsonl", tmp_path / "out.jsonl"
    arguments = [sys.executable, "-m", "blora.cli", "predict", str(rows), str(output), "--adapter", str(ADAPTER)]
    done = subprocess.run([*arguments, "--name", "mine"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[1:] == [
        "Adapter mine: more of these questions are unfamiliar than its calibration allows, so that its guarantee does not "
        "hold for them: look at the rows with the lowest familiarity"
    ]
    assert "drift" not in done.stderr


def test_another_run_does_not_go_on_with_it(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    assert answer(folder, output, "--min-confidence", "0.5").returncode == 0
    before = output.read_bytes()
    refused = answer(folder, output, "--min-confidence", "0.6")
    assert refused.returncode == 1
    assert refused.stderr.splitlines()[-1].startswith(
        f"blora predict: got {output}, which was made with other questions,"
    )
    assert output.read_bytes() == before


def test_a_run_does_not_go_on_with_questions_that_were_changed(folder: Path, tmp_path: Path) -> None:
    questions, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    arguments = command(folder, output, questions=questions)
    codes: list[int] = []
    for prompt in ("first", "other", "first"):  # of the same size
        questions.write_text(json.dumps({"prompt": prompt}) + "\n")
        codes.append(subprocess.run(arguments, capture_output=True, text=True, timeout=300).returncode)
    assert codes == [0, 1, 0]


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--min-confidence", "2"), "blora predict: Input should be less than or equal to 1"),
        (("--max-batch-tokens", "0"), "blora predict: --max-batch-tokens: Input should be greater than or equal to 1"),
        (("--target-risk", "0.1"), None),
        (("--adapter", "/no/where"), "blora predict: got adapter /no/where, expected an existing directory"),
    ],
)
def test_what_makes_no_sense_is_told(folder: Path, tmp_path: Path, flags: tuple[str, ...], message: str | None) -> None:
    done = answer(folder, tmp_path / "out.jsonl", *flags)
    if message is None:  # every row says why
        assert done.returncode == 3
        summary, why = done.stdout.splitlines()
        assert summary.endswith(f"the answers to 0 of {N_ROWS} rows, and errors for {N_ROWS}")
        first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
        assert first["error"]["code"] == "not_calibrated"
        told = f"{first['error']['param']}: {first['error']['message']}"
        assert why == f"  {N_ROWS} not_calibrated, first in row 0: {told}"
    else:
        assert done.returncode == 1
        assert done.stderr.splitlines()[-1].startswith(message)
        assert "Traceback" not in done.stderr


def test_the_adapter_has_the_name_that_is_given_and_bad_lines_their_errors(folder: Path, tmp_path: Path) -> None:
    questions, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    questions.write_text('{"prompt": "x", "id": 7}\nnonsense\n{"label": 1}\n[\n')
    arguments = command(folder, output, "--name", "mine", questions=questions)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    summary, *why = done.stdout.splitlines()
    assert (done.returncode, summary) == (3, f"{output} has the answers to 1 of 4 rows, and errors for 3")
    good, bad, empty, _ = map(json.loads, output.read_text().splitlines())
    assert why == [
        f"  2 invalid_json, first in row 1: {bad['error']['message']}",
        f"  1 missing, first in row 2: {empty['error']['message']}",
    ]
    assert (good["id"], good["prediction"]["adapter"]["name"]) == (7, "mine")
    assert bad["error"]["message"].startswith("This line is not JSON")


def test_the_columns_of_a_file_may_be_mapped_and_are_part_of_the_run(folder: Path, tmp_path: Path) -> None:
    questions, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    questions.write_text("text,number,other\nhello,t-1,bye\n")
    arguments = command(folder, output, "--columns", "prompt=text,id=number,label=intent", questions=questions)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    [row] = map(json.loads, output.read_text().splitlines())
    assert (row["id"], row["prediction"]["usage"]["prompt_tokens"] > 0) == ("t-1", True)
    arguments[-1] = "prompt=other,id=number"
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert "which was made with other questions, another adapter or other flags" in done.stderr


def test_a_file_without_questions_is_told_before_the_work(folder: Path, tmp_path: Path) -> None:
    questions, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    questions.write_text("text,label\nhello,1\n")
    arguments = command(folder, output, questions=questions)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(", or say with --columns prompt=NAME which one holds it")
    assert not output.exists()


def test_a_file_that_breaks_off_is_told_before_the_work(folder: Path, tmp_path: Path) -> None:
    questions, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    questions.write_text("question\n" + "fine\n" * 9 + '"not closed\nfine\n')
    arguments = command(folder, output, questions=questions)
    done = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1
    assert f"{questions}:11: this row is not CSV" in done.stderr.splitlines()[-1]
    assert not output.exists()
