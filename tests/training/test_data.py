import csv
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import datasets
import pytest

from blora.errors import DataError
from tests.training.toys import toy_data, toy_row, write_jsonl
from training.data import Example, ExampleSet, read_examples, split_examples

GOOD = {"question": "Which is warm?", "choices": ["ice", "fire"], "label": 1}


def row(**changes: Any) -> dict[str, Any]:
    """A good row with changes; None takes a field out."""
    return {key: value for key, value in (GOOD | changes).items() if value is not None}


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


# Hub data sets, from a local folder


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two splits and a cache of its own."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "hub"
    folder.mkdir()
    arc = {"text": ["ice", "snow", "fire"], "label": ["A", "B", "C"]}
    write_jsonl(folder / "train.jsonl", [{"question": f"Warm {i}?", "choices": arc, "answerKey": "C"} for i in range(3)])
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
    with pytest.raises(DataError, match=r"neither a .jsonl or .csv file nor a data set that loads \(.*validation"):
        read_examples(str(hub), split="validation")


def test_a_data_set_that_does_not_exist_is_a_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="neither a .jsonl or .csv file nor a data set that loads"):
        read_examples(str(tmp_path / "nowhere"))


# Malformed rows

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "bad JSON": ('{"question": "Warm?",', r"got a line that is not JSON \(.+\), expected one object a line"),
    "nested beyond reading": ("[" * 100_000, "got a line that is not JSON"),
    "a list": ([1, 2], "got list, expected a JSON object"),
    "a text": ('"Warm?"', "got str, expected a JSON object"),
    "null": ("null", "got NoneType, expected a JSON object"),
    "no question": (row(question=None), "got none of question, prompt, messages, expected exactly one"),
    "question and prompt": (row(prompt="Warm?"), "got question and prompt of question, prompt, messages"),
    "three kinds": (row(prompt="W?", messages=[]), "got question and prompt and messages of"),
    "empty prompt": (row(question=None, prompt=""), "got prompt '', expected non-empty text"),
    "blank question": (row(question=" \n"), r"got question ' \\n', expected non-empty text"),
    "number as prompt": (row(question=None, prompt=7), "got prompt 7, expected non-empty text"),
    "list as question": (row(question=["Warm?"]), r"got question \['Warm\?'\], expected non-empty text"),
    "no choices": (row(choices=None), "got no choices, expected a list of them, or a fixed label set"),
    "zero choices": (row(choices=[]), "got 0 choices, expected at least 2"),
    "one choice": (row(choices=["fire"], label=0), "got 1 choices, expected at least 2"),
    "duplicate choices": (row(choices=["ice", "ice"]), "expected distinct ones"),
    "choices equal but for spaces": (row(choices=["ice", " ice "]), "expected distinct ones"),
    "empty choice": (row(choices=["ice", ""]), r"got choices \['ice', ''\], expected a list of non-empty texts"),
    "blank choice": (row(choices=["ice", "  "]), "expected a list of non-empty texts"),
    "number as choice": (row(choices=["ice", 3]), "expected a list of non-empty texts"),
    "choices as text": (row(choices="ice|fire"), r"got choices 'ice\|fire', expected a list of non-empty texts"),
    "choices by name": (row(choices={"a": "ice", "b": "fire"}), "expected a list of non-empty texts"),
    "letters without texts": (row(choices={"label": ["A", "B"]}), "got no choices"),
    "more letters than texts": (
        row(choices={"text": ["ice", "fire"], "label": ["A", "B", "C"]}, label="C"),
        "got label|got choices",
    ),
    "no label": (row(label=None), "got no label, expected the index or the text of the right choice"),
    "label out of range": (row(label=2), "got label 2, expected an index from 0 to 1"),
    "label text out of range": (row(label="2"), "got label 2, expected an index from 0 to 1"),
    "label of 5000 digits": (row(label="9" * 5000), "got label"),
    "negative label": (row(label=-1), "got label -1, expected an index from 0 to 1"),
    "negative label text": (row(label="-1"), r"got label '-1', expected one of \['ice', 'fire'\] or an index"),
    "bool label": (row(label=True), "got label True, expected the index or the text"),
    "float label": (row(label=1.0), r"got label 1\.0, expected the index or the text"),
    "list label": (row(label=[1]), r"got label \[1\], expected the index or the text"),
    "unknown label": (row(label="Fire"), r"got label 'Fire', expected one of \['ice', 'fire'\] or an index"),
    "empty messages": (row(question=None, messages=[]), r"got messages that are not a non-empty list of \{role"),
    "messages as text": (row(question=None, messages="Warm?"), "got messages that are not a non-empty list"),
    "message as text": (row(question=None, messages=["Warm?"]), "got message 'Warm\\?', expected role system, user"),
    "unknown role": (
        row(question=None, messages=[{"role": "tool", "content": "Warm?"}]),
        "got message .*'tool'.*, expected role system, user or assistant",
    ),
    "empty content": (
        row(question=None, messages=[{"role": "user", "content": " "}]),
        "got message .*, expected role system, user or assistant and non-empty content",
    ),
    "content in parts": (
        row(question=None, messages=[{"role": "user", "content": [{"type": "text", "text": "Warm?"}]}]),
        "expected role system, user or assistant and non-empty content",
    ),
}


@pytest.mark.parametrize("name", BAD_ROWS)
def test_a_malformed_row_is_named_by_file_and_line(tmp_path: Path, name: str) -> None:
    bad, message = BAD_ROWS[name]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join([json.dumps(GOOD), bad if isinstance(bad, str) else json.dumps(bad), json.dumps(GOOD)]))
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}:2: .*{message}"):
        read_examples(str(file))


BAD_FIXED: dict[str, tuple[Any, tuple[str, ...], str]] = {
    "other choices": (GOOD, ("no", "yes"), r"got choices \['ice', 'fire'\], expected none or the fixed label set"),
    "another order": (GOOD, ("fire", "ice"), r"expected none or the fixed label set \['fire', 'ice'\]"),
    "unknown label": (row(choices=None, label="ice"), ("no", "yes"), r"got label 'ice', expected one of \['no', 'yes'\]"),
    "one choice": (row(choices=None, label=0), ("yes",), "got 1 choices, expected at least 2"),
    "equal choices": (row(choices=None), ("yes", "yes"), "expected distinct ones"),
}


@pytest.mark.parametrize("name", BAD_FIXED)
def test_a_row_that_breaks_the_fixed_label_set_is_named(tmp_path: Path, name: str) -> None:
    bad, choices, message = BAD_FIXED[name]
    file = write_jsonl(tmp_path / "rows.jsonl", [bad])
    with pytest.raises(DataError, match=f"^{re.escape(str(file))}:1: .*{message}"):
        read_examples(str(file), choices=choices)


HEADER = "question,choices,label\n"
FIRST = "Warm?,ice|fire,1\n"

# The file's name, its bytes, the line it goes wrong at (None: the whole file), and the message.
BAD_FILES: dict[str, tuple[str, bytes, int | None, str]] = {
    "empty JSONL": ("rows.jsonl", b"", None, "got no rows in .*rows.jsonl, expected at least one"),
    "blank JSONL": ("rows.jsonl", b"\n \n\r\n", None, "got no rows in .*rows.jsonl, expected at least one"),
    "empty CSV": ("rows.csv", b"", None, "got no rows in .*rows.csv, expected at least one"),
    "header only": ("rows.csv", HEADER.encode(), None, "got no rows in .*rows.csv, expected at least one"),
    "Latin 1": ("rows.jsonl", b'{}\n{}\n{"question": "caf\xe9"}\n', 3, "got bytes that are not UTF-8; save the file as"),
    "Latin 1 CSV": ("rows.csv", HEADER.encode() + b"caf\xe9,a|b,0\n", 2, "got bytes that are not UTF-8"),
    "too few columns": ("rows.csv", (HEADER + FIRST + "Cold?,ice|fire\n").encode(), 3, "does not have the header's 3 col"),
    "too many columns": ("rows.csv", (HEADER + "Cold?,ice,fire,0\n").encode(), 2, "does not have the header's 3 columns"),
    "text after a quote": ("rows.csv", (HEADER + FIRST + '"Cold"?,ice|fire,0\n').encode(), 3, "got a line that is not CSV"),
    "open quote": ("rows.csv", (HEADER + '"Cold?,ice|fire,0\n').encode(), 2, "got a line that is not CSV"),
    "choices that are not JSON": ("rows.csv", (HEADER + "Cold?,[ice|fire],0\n").encode(), 2, r"got choices '\[ice"),
    "unknown column": ("rows.csv", b"text,choices,label\nCold?,ice|fire,0\n", 2, "got none of question, prompt, mess"),
    "no label in CSV": ("rows.csv", (HEADER + "Cold?,ice|fire,\n").encode(), 2, "got no label"),
    "messages that are not JSON": ("rows.csv", b"messages,choices,label\n[hi],ice|fire,0\n", 2, "got messages that are"),
    "mixed kinds": (
        "rows.jsonl",
        f"{json.dumps(GOOD)}\n{json.dumps(row(question=None, prompt='Warm?'))}\n".encode(),
        None,
        "got rows of different kinds .*question.*rows.jsonl:1.*prompt.*rows.jsonl:2.*, expected one of question, prompt",
    ),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_malformed_file_is_refused(tmp_path: Path, name: str) -> None:
    file_name, content, line, message = BAD_FILES[name]
    file = tmp_path / file_name
    file.write_bytes(content)
    place = "" if line is None else f"{re.escape(str(file))}:{line}: (.*)"
    with pytest.raises(DataError, match=f"^{place}{message}"):
        read_examples(str(file))


@pytest.mark.parametrize("name", ["gone.jsonl", "gone.csv"])
def test_a_missing_file_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=rf"got data file .*{name}, which cannot be read \(No such file.*\); check"):
        read_examples(str(tmp_path / name))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match="which cannot be read"):
        read_examples(str(tmp_path / "rows.jsonl"))


def test_every_malformed_row_is_named_in_order(tmp_path: Path) -> None:
    bad = {2: row(label=9), 4: row(question=""), 5: row(choices=["a"])}
    file = write_jsonl(tmp_path / "rows.jsonl", [bad.get(line, GOOD) for line in range(1, 7)])
    with pytest.raises(DataError) as caught:
        read_examples(str(file))
    assert [re.match(r".*:(\d+): got ", line).group(1) for line in str(caught.value).splitlines()] == ["2", "4", "5"]


def test_a_message_names_ten_rows_and_counts_the_others(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [row(label=9)] * 13)
    with pytest.raises(DataError) as caught:
        read_examples(str(file))
    *lines, last = str(caught.value).splitlines()
    assert [int(line.split(":")[-2]) for line in lines] == list(range(1, 11))
    assert last == "and 3 more"


# Splitting


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> ExampleSet:
    return read_examples(str(write_jsonl(tmp_path_factory.mktemp("data") / "toy.jsonl", toy_data(20))))


def wheres(examples: ExampleSet) -> list[str]:
    return [example.where for example in examples.examples]


@pytest.mark.parametrize(
    ("n_train", "n_validation", "sizes"),
    [(None, None, (18, 2)), (5, None, (5, 15)), (None, 2, (18, 2)), (7, 4, (7, 4)), (1, 1, (1, 1)), (10, 10, (10, 10))],
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
    ("n_train", "n_validation"), [(20, None), (16, 5), (0, None), (-1, 5), (5, 0), (5, -1), (21, None), (None, 3)]
)
def test_a_split_into_too_many_or_no_rows_is_refused(
    twenty: ExampleSet, n_train: int | None, n_validation: int | None
) -> None:
    with pytest.raises(DataError, match=r"got 20 rows in toy\.jsonl, expected .* to train and .*--train-examples"):
        split_examples(twenty, n_train, n_validation, seed=0)


def test_one_row_cannot_be_split(tmp_path: Path) -> None:
    one = read_examples(str(write_jsonl(tmp_path / "one.jsonl", [GOOD])))
    with pytest.raises(DataError, match="got 1 rows in one.jsonl"):
        split_examples(one, None, None, seed=0)
