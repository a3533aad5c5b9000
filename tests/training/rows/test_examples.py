import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest
import torch

from blora.errors import ConfigError, DataError
from blora.posterior.noise import generator_of
from blora.training.rows.examples import Example, ExampleSet, read_examples, split_examples
from tests.training.toys import GOOD, row, toy_data, toy_row, write_jsonl


def read_row(tmp_path: Path, **changes: Any) -> Example:
    return read_examples(str(write_jsonl(tmp_path / "rows.jsonl", [row(**changes)]))).examples[0]


# Good files


def test_a_jsonl_row_becomes_an_example_that_knows_its_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(f"{json.dumps(GOOD)}\n\n{json.dumps(row(label=0, id='x'))}\n")
    read = read_examples(str(file))
    first, second = read.examples
    assert (first.kind, first.prompt, first.messages) == ("question", "Which is warm?", None)
    assert (first.choices, first.label) == (("ice", "fire"), 1)
    assert (first.where, second.where) == (f"{file}:1", f"{file}:3")
    assert second.label == 0
    assert read.source == "rows.jsonl"


def test_a_byte_order_mark_and_windows_line_ends_are_no_content(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\xef\xbb\xbf" + json.dumps(GOOD).encode() + b"\r\n" + json.dumps(GOOD).encode() + b"\r\n")
    assert len(read_examples(str(file)).examples) == 2


def test_a_line_separator_inside_a_text_ends_no_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(row(question="one\u2028two\x85three"), ensure_ascii=False) + "\n", encoding="utf-8")
    assert read_examples(str(file)).examples[0].prompt == "one\u2028two\x85three"


def test_the_digest_is_of_the_rows_and_not_of_their_place(tmp_path: Path) -> None:
    here = write_jsonl(tmp_path / "here.jsonl", [GOOD, row(label=0)])
    there = tmp_path / "there.jsonl"
    there.write_text(f"\n{json.dumps(dict(reversed(GOOD.items())))}\n\n{json.dumps(row(label=0))}")
    assert read_examples(str(here)).digest == read_examples(str(there)).digest
    other = write_jsonl(tmp_path / "other.jsonl", [GOOD, row(label=1)])
    assert read_examples(str(here)).digest != read_examples(str(other)).digest
    assert re.fullmatch(r"sha256:[0-9a-f]{64}", read_examples(str(here)).digest)


@pytest.mark.parametrize("label", [1, "1", "fire"])
def test_a_label_is_an_index_or_a_text(tmp_path: Path, label: int | str) -> None:
    assert read_row(tmp_path, label=label).label == 1


def test_a_label_that_is_a_choice_is_no_index(tmp_path: Path) -> None:
    assert read_row(tmp_path, choices=["2", "1", "0"], label="0").label == 2


def test_arcs_hub_form_goes_by_letters(tmp_path: Path) -> None:
    arc = {"text": ["ice", "snow", "fire"], "label": ["A", "B", "C"]}
    example = read_row(tmp_path, choices=arc, label=None, answerKey="C")
    assert (example.choices, example.label) == (("ice", "snow", "fire"), 2)


def test_arcs_hub_form_goes_by_numbers_where_those_are_its_letters(tmp_path: Path) -> None:
    arc = {"text": ["2", "3", "4", "1"], "label": ["1", "2", "3", "4"]}
    file = write_jsonl(tmp_path / "rows.jsonl", [{"question": "2 + 1?", "choices": arc, "answerKey": "2"}])
    assert read_examples(str(file)).examples[0].label == 1


@pytest.mark.parametrize("given", [None, ["no", "yes"]])
def test_a_fixed_label_set_serves_rows_with_and_without_choices(tmp_path: Path, given: list[str] | None) -> None:
    rows = [{"prompt": "Is it?", "choices": given, "label": "yes"}]
    example = read_examples(str(write_jsonl(tmp_path / "rows.jsonl", rows)), choices=("no", "yes")).examples[0]
    assert (example.choices, example.label) == (("no", "yes"), 1)


def test_messages_keep_role_and_content_only(tmp_path: Path) -> None:
    chat = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Warm?", "name": "ann"}]
    example = read_row(tmp_path, question=None, messages=chat)
    assert example.kind == "messages"
    assert example.prompt is None
    assert example.messages == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Warm?"},
    )


@pytest.mark.parametrize(
    ("kind", "template"),
    [("question", "Question: {prompt}\nAnswer:"), ("prompt", "{prompt}"), ("messages", "{prompt}")],
)
def test_each_kind_has_its_template(tmp_path: Path, kind: str, template: str) -> None:
    value = [{"role": "user", "content": "Warm?"}] if kind == "messages" else "Warm?"
    file = write_jsonl(tmp_path / "rows.jsonl", [row(**({"question": None} | {kind: value}))])
    assert read_examples(str(file)).template == template


def write_csv(path: Path, rows: Sequence[Sequence[str]]) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return path


def test_csv_reads_like_jsonl(tmp_path: Path) -> None:
    rows = [
        ["question", "choices", "label"],
        ["Which is warm?", "ice|fire", "1"],
        ["Which, of these\ntwo, is cold?", '["ice", "fire|wood"]', "ice"],
        ["Neither?", "ice|fire", "fire"],
    ]
    file = write_csv(tmp_path / "rows.CSV", rows)
    first, second, third = read_examples(str(file)).examples
    assert (first.choices, first.label, first.where) == (("ice", "fire"), 1, f"{file}:2")
    assert (second.prompt, second.choices) == ("Which, of these\ntwo, is cold?", ("ice", "fire|wood"))
    assert (second.label, second.where) == (0, f"{file}:3")
    assert (third.label, third.where) == (1, f"{file}:5")


def test_an_empty_csv_cell_is_an_absent_field(tmp_path: Path) -> None:
    chat = json.dumps([{"role": "user", "content": "Warm?"}])
    rows = [["prompt", "question", "messages", "label"], ["", "", chat, "yes"]]
    file = write_csv(tmp_path / "rows.csv", rows)
    assert read_examples(str(file), choices=("no", "yes")).examples[0].kind == "messages"


def test_a_csv_row_after_a_blank_line_is_named_by_its_own_line(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("question,choices,label\nWarm?,ice|fire,1\n\nCold?,ice|fire,0\n")
    assert [example.where for example in read_examples(str(file)).examples] == [f"{file}:2", f"{file}:4"]


def test_a_question_with_two_labels_is_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [GOOD, row(choices=["fire", "ice"], label="fire"), row(choices=["ice", "fire", "tea"], label="tea")]
    read_examples(rows)
    assert not caplog.records
    read_examples([*rows, row(question="Which is  warm? ", choices=["ice ", "fire"], label="ice")])
    [told] = caplog.records
    assert told.levelname == "WARNING"
    assert told.getMessage().startswith("rows[0] has the label 'fire', and rows[3], with the same question, has 'ice'")


def test_a_limit_takes_rows_from_the_top_and_is_1_at_least() -> None:
    rows = toy_data(5)
    assert [example.where for example in read_examples(rows, limit=2).examples] == ["rows[0]", "rows[1]"]
    for limit in (0, -5):
        with pytest.raises(ConfigError, match=f"got limit {limit}, expected 1 or more, or None for all rows"):
            read_examples(rows, limit=limit)


@pytest.mark.parametrize("meta", [{1: 2, "b": 3}, {(1, 2): 3}])
def test_a_column_that_json_cannot_hold_counts_in_the_digest(meta: dict[Any, int]) -> None:
    read = read_examples([GOOD | {"meta": meta}])
    assert read.digest == read_examples([{"meta": meta} | GOOD]).digest
    assert read.digest != read_examples([GOOD | {"meta": meta | {1: 4}}]).digest


# Hub data sets, from a local folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a folder with two splits, with an empty cache for `datasets`."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    arc = {"text": ["ice", "snow", "fire"], "label": ["A", "B", "C"]}
    write_jsonl(
        folder / "train.jsonl", [{"question": f"Warm {i}?", "choices": arc, "answerKey": "C"} for i in range(3)]
    )
    write_jsonl(folder / "test.jsonl", [{"question": "Cold?", "choices": arc, "answerKey": "B"}])
    return folder


@pytest.mark.parametrize(("split", "n_rows", "label"), [("train", 3, 2), ("test", 1, 1)])
def test_a_hub_data_set_is_read_by_split(hub: Path, split: str, n_rows: int, label: int) -> None:
    read = read_examples(str(hub), split=split)
    assert read.source == f"{hub}/{split}"
    assert len(read.examples) == n_rows
    assert {example.label for example in read.examples} == {label}
    assert read.examples[0].choices == ("ice", "snow", "fire")
    assert read.examples[0].where == f"{hub}/{split}:1"


def test_a_hub_data_set_in_parquet_is_read_alike(hub: Path, tmp_path: Path) -> None:
    folder = tmp_path / "parquet"
    folder.mkdir()
    datasets.load_dataset(str(hub), split="train").to_parquet(folder / "train.parquet")
    parquet, jsonl = read_examples(str(folder)), read_examples(str(hub))
    assert parquet.digest == jsonl.digest
    assert [example.prompt for example in parquet.examples] == [example.prompt for example in jsonl.examples]


def test_a_hub_row_that_is_malformed_is_named_by_split_and_number(hub: Path) -> None:
    rows = [toy_row(1, 0), toy_row(2, 0) | {"label": 7}]
    for file in hub.iterdir():
        file.unlink()
    write_jsonl(hub / "train.jsonl", rows)
    with pytest.raises(DataError, match=f"^{re.escape(str(hub))}/train:2: got label 7, expected an index from 0 to 1$"):
        read_examples(str(hub))


def test_a_split_that_does_not_exist_is_a_data_error(hub: Path) -> None:
    with pytest.raises(
        DataError, match=r"neither a .jsonl, .csv, .parquet file nor a data set that loads \(.*validation"
    ):
        read_examples(str(hub), split="validation")


def test_a_data_set_that_does_not_exist_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a .jsonl, .csv, .parquet file nor a data set that loads"):
        read_examples(str(tmp_path / "nowhere"))


# Splitting


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> ExampleSet:
    return read_examples(str(write_jsonl(tmp_path_factory.mktemp("data") / "toy.jsonl", toy_data(20))))


def wheres(examples: ExampleSet) -> list[str]:
    return [example.where for example in examples.examples]


@pytest.mark.parametrize(
    ("n_train", "n_validation", "sizes"),
    [
        (None, None, (18, 2)),
        (5, None, (5, 15)),
        (None, 1, (19, 1)),
        (None, 6, (14, 6)),
        (7, 4, (7, 4)),
        (1, 1, (1, 1)),
        (10, 10, (10, 10)),
    ],
)
def test_a_split_is_disjoint(
    twenty: ExampleSet, n_train: int | None, n_validation: int | None, sizes: tuple[int, int]
) -> None:
    train, validation = split_examples(twenty, n_train, n_validation, seed=0)
    assert (len(train.examples), len(validation.examples)) == sizes
    assert len({*wheres(train), *wheres(validation)}) == sum(sizes)
    assert {*wheres(train), *wheres(validation)} <= set(wheres(twenty))
    assert (train.source, train.digest) == (validation.source, validation.digest) == (twenty.source, twenty.digest)


def test_a_split_depends_on_its_seed_alone(twenty: ExampleSet) -> None:
    assert split_examples(twenty, 10, 5, seed=3) == split_examples(twenty, 10, 5, seed=3)
    assert split_examples(twenty, 10, 5, seed=3) != split_examples(twenty, 10, 5, seed=4)


def test_fewer_validation_rows_leave_the_training_rows_as_they_are(twenty: ExampleSet) -> None:
    assert split_examples(twenty, 10, 5, seed=0)[0] == split_examples(twenty, 10, 2, seed=0)[0]


@pytest.mark.parametrize(
    ("n_train", "n_validation"), [(20, None), (16, 5), (0, None), (-1, 5), (5, 0), (5, -1), (21, None), (None, 20)]
)
def test_a_split_into_too_many_or_no_rows_is_refused(
    twenty: ExampleSet, n_train: int | None, n_validation: int | None
) -> None:
    with pytest.raises(DataError, match=r"got 20 rows in toy\.jsonl, expected .* to train and .*--train-examples"):
        split_examples(twenty, n_train, n_validation, seed=0)


def test_no_number_of_rows_in_an_error_is_negative(twenty: ExampleSet) -> None:
    with pytest.raises(DataError, match="expected 1000 to train and 0 to validate on"):
        split_examples(twenty, 1000, None, seed=0)


def test_one_row_cannot_be_split(tmp_path: Path) -> None:
    one = read_examples(str(write_jsonl(tmp_path / "one.jsonl", [GOOD])))
    with pytest.raises(DataError, match="got 1 rows in one.jsonl"):
        split_examples(one, None, None, seed=0)


def test_a_split_of_distinct_questions_is_the_seeded_order_cut(twenty: ExampleSet) -> None:
    order = torch.randperm(20, generator=generator_of(3)).tolist()
    train, validation = split_examples(twenty, 11, 6, seed=3)
    assert wheres(train) == [twenty.examples[i].where for i in order[:11]]
    assert wheres(validation) == [twenty.examples[i].where for i in order[11:17]]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("n_train", "n_validation"), [(None, None), (20, None), (20, 10), (7, 3)])
def test_rows_with_the_same_question_are_on_one_side_of_a_split(
    tmp_path: Path, seed: int, n_train: int | None, n_validation: int | None
) -> None:
    rows = toy_data(20)
    again = [row | {"label": 1 - row["label"], "choices": row["choices"][::-1]} for row in rows[:10]]
    both = read_examples(str(write_jsonl(tmp_path / "rows.jsonl", rows + again)))
    train, validation = split_examples(both, n_train, n_validation, seed=seed)
    assert len(train.examples) == (27 if n_train is None else n_train)
    assert len(validation.examples) == (30 - len(train.examples) if n_validation is None else n_validation)
    assert not {e.identity for e in train.examples} & {e.identity for e in validation.examples}
    assert (train, validation) == split_examples(both, n_train, n_validation, seed=seed)


def test_rows_about_one_text_with_other_choices_are_on_one_side_of_a_split() -> None:
    sets = (["urgent", "later"], ["bug", "billing"], ["calm", "angry"])
    rows = [{"prompt": f"Ticket {n}", "choices": choices, "label": 0} for n in range(20) for choices in sets]
    train, validation = split_examples(read_examples(rows), 45, None, seed=0)
    assert (len(train.examples), len(validation.examples)) == (45, 15)
    assert not {example.prompt for example in train.examples} & {example.prompt for example in validation.examples}


def test_copies_of_one_question_cannot_be_split(tmp_path: Path) -> None:
    copies = read_examples(str(write_jsonl(tmp_path / "rows.jsonl", [GOOD] * 10)))
    with pytest.raises(
        DataError, match="got 10 rows in rows.jsonl, expected 9 to train and 1 to validate on without a"
    ):
        split_examples(copies, None, None, seed=0)
