"""`blora predict` on a tiny model; in a process of its own where a test ends it, or reads its log."""

import json
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from benchmarks.server_process import ADAPTER, TRIAGE
from blora.cli import main
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import CHOICES, write_adapter

N_ROWS, N_FEW = 3000, 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("predict")
    tiny_model().save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    write_adapter(root / "tickets v2", root / "tiny", seed=1)
    rows = ({"id": f"t-{k}", "prompt": f"question {k}" + "?" * (k % 40), "label": 0} for k in range(N_ROWS))
    lines = [json.dumps(row) + "\n" for row in rows]
    (root / "rows.jsonl").write_text("".join(lines))
    (root / "few.jsonl").write_text("".join(lines[:N_FEW]))
    return root


def flags_of(folder: Path, output: Path, *flags: str, questions: Path | None = None) -> list[str]:
    return [
        *("predict", str(questions or folder / "few.jsonl"), str(output), "--adapter", str(folder / "tickets v2")),
        *("--base-model", str(folder / "tiny"), "--device", "cpu", *flags),
    ]


def started(folder: Path, output: Path) -> "subprocess.Popen[bytes]":
    """Begin to answer all rows in a process of its own."""
    command = [sys.executable, "-m", "blora.cli", *flags_of(folder, output, questions=folder / "rows.jsonl")]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def test_a_run_that_is_killed_twice_has_each_row_once(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    n_rows: list[int] = []
    for goal in (500, 1500):
        process = started(folder, output)
        deadline = time.monotonic() + 120
        while not output.exists() or output.read_bytes().count(b"\n") < goal:
            assert process.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        process.kill()
        process.wait()
        n_rows.append(output.read_bytes().count(b"\n"))
    assert 500 <= n_rows[0] < n_rows[1] < N_ROWS
    assert main(flags_of(folder, output, questions=folder / "rows.jsonl")) == 0
    assert capsys.readouterr().out == f"{output}: {N_ROWS} of {N_ROWS} rows answered, 0 withheld, 0 errors\n"
    found = [json.loads(line) for line in output.read_text().splitlines()]
    assert [(row["row"], row["id"]) for row in found] == [(k, f"t-{k}") for k in range(N_ROWS)]
    assert all({entry["choice"] for entry in row["prediction"]["probabilities"]} == set(CHOICES) for row in found)
    assert {row["prediction"]["adapter"]["name"] for row in found} == {"tickets-v2"}
    prompts = [row["prediction"]["usage"]["prompt_tokens"] for row in found]
    assert [b - a for a, b in pairwise(prompts[100:140])] == [1] * 19 + [-39] + [1] * 19


def test_a_second_run_on_an_output_ends_at_once_and_the_first_one_goes_on(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    first = started(folder, output)
    try:
        deadline = time.monotonic() + 120
        while not output.exists() or output.read_bytes().count(b"\n") < 100:
            assert first.poll() is None, "it ended by itself"
            assert time.monotonic() < deadline
            time.sleep(0.01)
        first.send_signal(signal.SIGSTOP)
        assert main(flags_of(folder, output, questions=folder / "rows.jsonl")) == 1
        assert capsys.readouterr().err == (
            f"blora predict: got {output}, which another run is writing, expected one run at a time: wait until that run "
            "has ended, or name another output\n"
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
    for kept in (None, 99):  # and again by a run that goes on, for which one row would be too little evidence
        if kept is not None:
            output.write_bytes(b"".join(output.read_bytes().splitlines(keepends=True)[:kept]))
        done = subprocess.run([*arguments, "--name", "mine"], capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        answers = [json.loads(line)["prediction"] for line in output.read_text().splitlines()]
        withheld = sum(answer["abstained"] for answer in answers)
        assert done.stdout.splitlines() == [
            f"{output}: {100 - withheld} of 100 rows answered, {withheld} withheld, 0 errors",
            "Adapter mine: more of these questions are unfamiliar than its calibration allows, so that its guarantee does "
            "not hold for them: look at the rows with the lowest familiarity",
        ]
        assert "drift" not in done.stderr


@pytest.mark.parametrize(
    ("flag", "values"), [("--min-confidence", ("0.5", "0.6")), ("--max-batch-tokens", ("50", "600"))]
)
def test_another_run_does_not_go_on_with_it(
    flag: str, values: tuple[str, str], folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    assert main(flags_of(folder, output, flag, values[0])) in (0, 3)
    before = output.read_bytes()
    assert main(flags_of(folder, output, flag, values[1])) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"blora predict: got {output}, which was made with other questions,")
    assert output.read_bytes() == before


def test_withheld_answers_are_counted_apart(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "out.jsonl"
    assert main(flags_of(folder, output, "--min-confidence", "1")) == 0
    assert capsys.readouterr().out == f"{output}: 0 of {N_FEW} rows answered, {N_FEW} withheld, 0 errors\n"


def test_an_empty_output_is_none(folder: Path, tmp_path: Path) -> None:
    output = tmp_path / "out.jsonl"
    output.touch()
    assert main(flags_of(folder, output)) == 0
    assert output.read_bytes().count(b"\n") == N_FEW


def test_a_record_that_was_cut_off_is_of_another_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "out.jsonl"
    assert main(flags_of(folder, output)) == 0
    note = output.with_name(f"{output.name}.run.json")
    note.write_bytes(note.read_bytes()[:20])
    assert main(flags_of(folder, output)) == 1
    assert f"got {output}, which was made with other questions" in capsys.readouterr().err


def test_a_run_does_not_go_on_with_questions_that_were_changed(folder: Path, tmp_path: Path) -> None:
    questions, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    codes: list[int] = []
    for prompt in ("first", "other", "first"):  # of the same size
        questions.write_text(json.dumps({"prompt": prompt}) + "\n")
        codes.append(main(flags_of(folder, output, questions=questions)))
    assert codes == [0, 1, 0]


def test_a_run_does_not_go_on_in_another_dtype_that_auto_means_elsewhere(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    questions.write_text(json.dumps({"prompt": "first"}) + "\n")

    def run(*flags: str, native: tuple[str, ...]) -> int:
        monkeypatch.setattr("blora.adapter.opening.native_dtypes", lambda device: native)
        return main(flags_of(folder, output, *flags, questions=questions))

    assert run(native=("bfloat16", "float32")) == 0
    before = output.read_bytes()
    assert run(native=("float32",)) == 1
    assert "another dtype or other flags, expected an output of the same command in float32" in capsys.readouterr().err
    assert output.read_bytes() == before
    assert run("--dtype", "bfloat16", native=("float32",)) == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--min-confidence", "2"),
            "blora predict: got --min-confidence 2.0, expected another value: Input should be less than or equal to 1",
        ),
        (("--max-batch-tokens", "0"), "blora predict: --max-batch-tokens: Input should be greater than or equal to 1"),
        (("--target-risk", "0.1"), None),
        (("--adapter", "/no/where"), "blora predict: got adapter /no/where, expected an existing directory"),
    ],
)
def test_what_makes_no_sense_is_told(
    folder: Path, tmp_path: Path, flags: tuple[str, ...], message: str | None, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(flags_of(folder, tmp_path / "out.jsonl", *flags))
    told = capsys.readouterr()
    if message is None:  # every row says why
        assert code == 3
        summary, why = told.out.splitlines()
        assert summary.endswith(f": 0 of {N_FEW} rows answered, 0 withheld, {N_FEW} errors")
        first = json.loads((tmp_path / "out.jsonl").read_text().splitlines()[0])
        assert first["error"]["code"] == "not_calibrated"
        assert why == (
            f"  {N_FEW} not_calibrated, first in {folder / 'few.jsonl'}:1: {first['error']['param']}: "
            f"{first['error']['message']}"
        )
    else:
        assert code == 1
        assert told.err.splitlines()[-1].startswith(message)
        assert "Traceback" not in told.err


def test_the_adapter_has_the_name_that_is_given_and_bad_lines_their_errors(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, output = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    questions.write_text('{"prompt": "x", "id": 7}\n\nnonsense\n{"label": 1}\n[\n')
    code = main(flags_of(folder, output, "--name", "mine", questions=questions))
    summary, *why = capsys.readouterr().out.splitlines()
    assert (code, summary) == (3, f"{output}: 1 of 4 rows answered, 0 withheld, 3 errors")
    good, bad, empty, _ = map(json.loads, output.read_text().splitlines())
    assert why == [
        f"  2 invalid_json, first in {questions}:3: {bad['error']['message']}",
        f"  1 missing, first in {questions}:4: {empty['error']['message']}",
    ]
    assert (bad["row"], empty["row"]) == (1, 2)
    assert (good["id"], good["prediction"]["adapter"]["name"]) == (7, "mine")
    assert bad["error"]["message"].startswith("This line is not JSON")


def test_the_columns_of_a_file_may_be_mapped_and_are_part_of_the_run(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    questions.write_text("text,number,other\nhello,t-1,bye\n")
    assert main(flags_of(folder, output, "--columns", "prompt=text,id=number,label=intent", questions=questions)) == 0
    [row] = map(json.loads, output.read_text().splitlines())
    assert (row["id"], row["prediction"]["usage"]["prompt_tokens"] > 0) == ("t-1", True)
    assert main(flags_of(folder, output, "--columns", "prompt=other,id=number", questions=questions)) == 1
    told = capsys.readouterr().err
    assert "which was made with other questions, another adapter, another dtype or other flags" in told


@pytest.mark.parametrize("name", ["rows.jsonl", "link.jsonl"])
def test_the_file_of_questions_is_no_output(
    name: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, output = tmp_path / "rows.jsonl", tmp_path / name
    questions.write_text('{"prompt": "x"}\n')
    (tmp_path / "link.jsonl").symlink_to(questions)
    assert main(flags_of(folder, output, questions=questions)) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.startswith(f"blora predict: got {output} as output, which is the file of questions, expected another")
    assert questions.read_text() == '{"prompt": "x"}\n'
    assert sorted(file.name for file in tmp_path.iterdir()) == ["link.jsonl", "rows.jsonl"]


def test_a_file_without_questions_is_told_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    questions.write_text("text,label\nhello,1\n")
    assert main(flags_of(folder, output, questions=questions)) == 1
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith(", or say with --columns prompt=NAME which one holds it")
    assert not output.exists()


def test_a_file_that_breaks_off_is_told_before_the_work(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions, output = tmp_path / "rows.csv", tmp_path / "out.jsonl"
    questions.write_text("question\n" + "fine\n" * 9 + '"not closed\nfine\n')
    assert main(flags_of(folder, output, questions=questions)) == 1
    assert f"{questions}:11: this row is not CSV" in capsys.readouterr().err.splitlines()[-1]
    assert not output.exists()
