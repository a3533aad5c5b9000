"""An adapter remembers every row that it was made with, whichever commands made it."""

from pathlib import Path

import pytest

from blora.adapter import read_config
from blora.cli import main
from blora.errors import DataError
from blora.training.rows.examples import read_examples
from blora.training.rows.overlap import check_unseen
from tests.training.toys import toy_row, train_arguments, write_jsonl


def rows(folder: Path, start: int) -> Path:
    return write_jsonl(folder / f"from{start}.jsonl", [toy_row(start + index, index % 2) for index in range(20)])


def check_refused(adapter: Path, data: Path, use: str) -> None:
    some = data.with_name("some.jsonl")  # whose digest is that of no data set
    some.write_text("".join(data.read_text().splitlines(keepends=True)[:10]))
    with pytest.raises(DataError, match=rf"got 10 of 10 questions .*\({use}\)"):
        check_unseen(read_config(adapter).training, read_examples(str(some)))


def model(base_folder: Path) -> tuple[str, ...]:
    return ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32")


def test_a_second_tuning_does_not_forget_the_rows_of_the_first(base_folder: Path, tmp_path: Path) -> None:
    trained, first, second, unseen = (rows(tmp_path, start) for start in (100, 200, 300, 400))
    adapter = tmp_path / "toy"
    assert main(["train", *train_arguments(base_folder, trained, adapter, "--epochs", "1")]) == 0
    for data in (first, second):
        assert main(["tune", str(adapter), "--data", str(data), *model(base_folder), "--scales", "1"]) == 0
        check_refused(adapter, data, "tuning")
    check_refused(adapter, first, "tuning")
    check_unseen(read_config(adapter).training, read_examples(str(unseen)))


def test_the_rows_of_the_adapter_that_it_starts_from_are_its_own(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, later, judges = (rows(tmp_path, start) for start in (100, 200, 300))
    plain = ("--method", "lora", "--lora-learning-rate", "0.05", "--epochs", "1", "--validation", str(judges))
    assert main(["train", *train_arguments(base_folder, earlier, tmp_path / "lora", *plain)]) == 0
    start = ("--init-from", str(tmp_path / "lora"), "--epochs", "1")
    assert main(["train", *train_arguments(base_folder, later, tmp_path / "toy", *start)]) == 0
    check_refused(tmp_path / "toy", earlier, "init")
    again = ["train", *train_arguments(base_folder, later, tmp_path / "again", *start), "--validation"]
    capsys.readouterr()
    assert main([*again, str(earlier)]) == 1
    assert "got 20 of 20 questions in from100.jsonl that the adapter was made with" in capsys.readouterr().err
    assert main([*again, str(judges)]) == 0  # these rows determined no weights
    assert main(["tune", str(tmp_path / "toy"), "--data", str(earlier), *model(base_folder)]) == 1
    command = ["bayesianize", str(tmp_path / "lora"), "--output", str(tmp_path / "wide"), *model(base_folder)]
    capsys.readouterr()
    assert main([*command, "--data", str(earlier)]) == 1
    assert "got 20 of 20 questions in from100.jsonl that the adapter was made with" in capsys.readouterr().err
    assert main([*command, "--data", str(later), "--scales", "0.5"]) == 0
    check_refused(tmp_path / "wide", earlier, "init")
    check_refused(tmp_path / "wide", judges, "init validation")
    check_refused(tmp_path / "wide", later, "tuning")


def test_the_same_rows_judge_every_continuation(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    earlier, judges, tuning = (rows(tmp_path, start) for start in (100, 200, 300))
    before: tuple[str, ...] = ()
    for name in ("first", "second", "third"):
        more = ("--method", "lora", "--epochs", "1", "--validation", str(judges), *before)
        assert main(["train", *train_arguments(base_folder, earlier, tmp_path / name, *more)]) == 0
        before = ("--init-from", str(tmp_path / name))
        check_refused(tmp_path / name, earlier, "train")
        check_refused(tmp_path / name, judges, "validation")
    wide = tmp_path / "wide"
    command = ["bayesianize", str(tmp_path / "first"), "--output", str(wide), *model(base_folder), "--scales", "0.5"]
    assert main([*command, "--data", str(tuning)]) == 0
    start = ("--init-from", str(wide), "--epochs", "1", "--validation")
    fresh = rows(tmp_path, 400)
    for data in (judges, tuning):
        assert main(["train", *train_arguments(base_folder, fresh, tmp_path / "toy", *start, str(data))]) == 0
    capsys.readouterr()
    assert main(["train", *train_arguments(base_folder, fresh, tmp_path / "toy", *start, str(earlier))]) == 1
    assert "from100.jsonl:1 (init)" in capsys.readouterr().err
