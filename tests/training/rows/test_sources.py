"""Equal examples from rows of every kind: files, lists of dicts, frames of pandas and polars, data sets."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import pyarrow
import pyarrow.parquet
import pytest

from blora.errors import ConfigError, DataError
from blora.training.rows.examples import ExampleSet, examples_of, read_examples
from blora.training.rows.labels import label_set
from blora.training.rows.sources import read_table
from tests.training.toys import GOOD, row, toy_data, write_jsonl

NEWS = [
    {"text": "Shares fell again.", "label": 1},
    {"text": "The keeper saved it.", "label": 0},
    {"text": "Nobody knows.", "label": 1},
]
NAMES = ["sport", "business", "science"]


def pandas_frame(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("pandas").DataFrame(rows)


def polars_frame(rows: list[dict[str, Any]]) -> Any:
    return pytest.importorskip("polars").DataFrame(rows)


KINDS: dict[str, Callable[[list[dict[str, Any]]], Any]] = {
    "a list": list,
    "a generator": lambda rows: (row for row in rows),
    "pandas": pandas_frame,
    "polars": polars_frame,
    "a data set": datasets.Dataset.from_list,
}


def plain(examples: ExampleSet) -> list[tuple[object, ...]]:
    return [(e.kind, e.prompt, e.choices, e.label) for e in examples.examples]


def news(rows: list[dict[str, Any]] | None = None) -> datasets.Dataset:
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=NAMES)})
    return datasets.Dataset.from_list(rows or NEWS, features=features)


@pytest.mark.parametrize("kind", KINDS)
def test_a_table_in_memory_reads_as_the_file_does(kind: str, tmp_path: Path) -> None:
    rows = toy_data(6)
    expected = read_examples(str(write_jsonl(tmp_path / "toy.jsonl", rows)))
    found = read_examples(KINDS[kind](rows))
    assert plain(found) == plain(expected)
    assert found.digest == expected.digest


def test_a_path_is_as_good_as_its_text(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "toy.jsonl", [GOOD])
    assert read_examples(file) == read_examples(str(file))


def test_a_parquet_file_reads_as_the_jsonl_file_does(tmp_path: Path) -> None:
    rows = toy_data(6)
    datasets.Dataset.from_list(rows).to_parquet(tmp_path / "toy.parquet")
    found = read_examples(tmp_path / "toy.parquet")
    expected = read_examples(write_jsonl(tmp_path / "toy.jsonl", rows))
    assert (plain(found), found.digest) == (plain(expected), expected.digest)
    assert found.examples[1].where == f"{tmp_path / 'toy.parquet'}:2"
    with pytest.raises(DataError, match="toy.parquet: got the columns .*, expected rating, which `columns` names"):
        read_examples(tmp_path / "toy.parquet", columns={"label": "rating"})


def test_a_parquet_file_that_cannot_be_read_says_so(tmp_path: Path) -> None:
    file = tmp_path / "toy.parquet"
    twice = pyarrow.table([["a"], ["b"]], names=["prompt", "prompt"])
    pyarrow.parquet.write_table(twice, file)
    with pytest.raises(DataError, match=r"toy\.parquet: got the column 'prompt' twice, expected it once"):
        read_examples(file)
    datasets.Dataset.from_list(toy_data(200)).to_parquet(file)
    contents = bytearray(file.read_bytes())
    contents[8:200] = bytes(192)
    file.write_bytes(contents)
    with pytest.raises(DataError, match=r"toy\.parquet cannot be read as a \.parquet file: "):
        read_examples(file)
    with pytest.raises(
        DataError, match=r"none\.parquet cannot be read \(.*No such file or directory\); check the path"
    ):
        read_examples(tmp_path / "none.parquet")


@pytest.mark.parametrize("kind", KINDS)
def test_columns_that_are_called_otherwise_are_mapped(kind: str) -> None:
    rows = [{"review": "Fine.", "mood": "good", "prompt": 7}, {"review": "Bad.", "mood": "bad", "prompt": 8}]
    columns = {"prompt": "review", "label": "mood"}
    found = read_examples(KINDS[kind](rows), columns=columns, choices=("bad", "good"))
    assert plain(found) == [("prompt", "Fine.", ("bad", "good"), 1), ("prompt", "Bad.", ("bad", "good"), 0)]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_file_is_mapped_likewise(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name.endswith(".csv"):
        file.write_text("review,mood\nFine.,good\n")
    else:
        write_jsonl(file, [{"review": "Fine.", "mood": "good"}])
    [found] = read_examples(file, columns={"prompt": "review", "label": "mood"}, choices=("bad", "good")).examples
    assert (found.prompt, found.label) == ("Fine.", 1)
    with pytest.raises(DataError, match=r":1: got the columns review, mood, expected rating, which `columns` names"):
        read_examples(file, columns={"prompt": "review", "label": "rating"}, choices=("bad", "good"))


@pytest.mark.parametrize("kind", KINDS)
def test_a_text_is_a_prompt_where_no_column_is_a_question(kind: str) -> None:
    rows = [{"text": "Fine.", "label": "good"}, {"text": "Bad.", "label": "bad"}]
    found = read_examples(KINDS[kind](rows), choices=("bad", "good"))
    assert [(e.kind, e.prompt) for e in found.examples] == [("prompt", "Fine."), ("prompt", "Bad.")]
    both = read_examples([{"text": "context", "question": "Which?", "label": "good"}], choices=("bad", "good"))
    assert both.examples[0].prompt == "Which?"


# Labels


def test_numbers_with_names_become_the_names() -> None:
    found = read_examples(news(), choices=("business", "science", "sport"))
    assert [e.choices[e.label] for e in found.examples] == ["business", "sport", "business"]
    assert found.examples[0].where == "Dataset[0]"


def test_the_label_set_is_that_of_the_names_in_their_order() -> None:
    table = read_table(news())
    assert label_set(table) == tuple(NAMES)
    assert [e.label for e in examples_of(table, label_set(table)).examples] == [1, 0, 1]


@pytest.mark.parametrize("field", ["label", "label_text"])
def test_a_mapped_column_has_its_names_too(field: str) -> None:
    renamed = news().rename_columns({"text": "headline", "label": "section"})
    table = read_table(renamed, columns={"prompt": "headline", field: "section"})
    assert label_set(table) == tuple(NAMES)
    assert [row[field] for _, row in table.rows if isinstance(row, dict)] == ["business", "sport", "business"]


def test_a_row_of_a_data_set_without_a_label_is_named() -> None:
    with pytest.raises(DataError, match=r"^Dataset\[1\]: got no label"):
        read_examples(news([NEWS[0], {"text": "Unknown.", "label": -1}]), choices=NAMES)


@pytest.mark.parametrize("kind", KINDS)
def test_the_label_set_of_texts_is_what_occurs_sorted(kind: str) -> None:
    rows = [{"prompt": f"q{n}", "label": label} for n, label in enumerate(["b", "a", "c", "a"])]
    assert label_set(read_table(KINDS[kind](rows))) == ("a", "b", "c")


def test_the_label_set_is_of_the_labels_where_there_is_no_label_text() -> None:
    rows = [{"prompt": "q", "label": "b", "label_text": None}, {"prompt": "r", "label": None, "label_text": "a"}]
    assert label_set(read_table(rows)) == ("a", "b")


def test_a_label_with_white_space_around_it_is_no_label_of_its_own(caplog: pytest.LogCaptureFixture) -> None:
    table = read_table([{"prompt": f"q{n}", "label": label} for n, label in enumerate(["b", "a", "b ", "\u200bb"])])
    assert label_set(table) == ("a", "b")
    assert [example.label for example in examples_of(table, label_set(table)).examples] == [1, 0, 1, 1]
    assert not caplog.records


@pytest.mark.parametrize("rows", [[GOOD], []])
def test_there_is_no_label_set_of_rows_that_bring_their_choices(rows: list[dict[str, Any]]) -> None:
    assert label_set(read_table(rows)) is None


@pytest.mark.parametrize("wrong", [1, ["a"], 1.5])
def test_a_label_that_is_no_name_needs_the_choices(wrong: object) -> None:
    rows = [{"prompt": "q", "label": "a"}, {"prompt": "r", "label": wrong}]
    with pytest.raises(DataError, match=r"got label .* and no choices in rows, expected texts or the choices too"):
        label_set(read_table(rows))


def test_indices_need_the_choices() -> None:
    with pytest.raises(DataError, match="got label_index 0 and no choices in rows, expected texts or the choices too"):
        label_set(read_table([{"prompt": "q", "label_index": 0}, {"prompt": "r", "label_index": 1}]))


def test_digits_in_csv_need_the_choices_or_to_be_called_texts(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,label\nq,10\nr,J45\ns,0\n")
    with pytest.raises(DataError, match=r"got label '10' and no choices .*--columns label_text=NAME"):
        label_set(read_table(file))
    table = read_table(file, columns={"label_text": "label"})
    assert label_set(table) == ("0", "10", "J45")
    assert [example.label for example in examples_of(table, label_set(table)).examples] == [1, 2, 0]


@pytest.mark.parametrize("n_labels", [1, 256])
def test_a_label_set_that_nobody_could_be_asked_is_refused(n_labels: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = [{"prompt": f"q{n}", "label": f"l{n}"} for n in range(n_labels)]
    monkeypatch.setattr("blora.training.rows.labels.warn_of_odd_labels", None)  # too slow for very many labels
    with pytest.raises(DataError, match=f"got {n_labels} different labels in rows, expected 2 to 255"):
        label_set(read_table(rows))


# Cells


def test_numbers_and_arrays_of_numpy_are_pythons() -> None:
    numpy = pytest.importorskip("numpy")
    rows = [{"question": "Warm?", "choices": numpy.array(["ice", "fire"]), "label": numpy.int64(1)}]
    assert read_examples(rows).examples[0].label == 1


NESTED: dict[str, dict[str, Any]] = {
    "ARC": {"question": "Warm?", "choices": {"text": ["ice", "fire"], "label": ["A", "B"]}, "answerKey": "B"},
    "a request": {
        "input": "The app is down!",
        "questions": [
            {"type": "choice", "name": "queue", "choices": [{"value": "bug"}, {"value": "bill"}], "label": "bug"}
        ],
    },
}


@pytest.mark.parametrize("name", NESTED)
def test_a_pandas_frame_from_parquet_with_nested_cells_reads_as_the_row_does(name: str, tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    pandas_frame([NESTED[name]]).to_parquet(tmp_path / "rows.parquet")
    frame = pandas.read_parquet(tmp_path / "rows.parquet")
    assert plain(read_examples(frame)) == plain(read_examples([NESTED[name]]))


@pytest.mark.parametrize("kind", ["pandas", "polars"])
def test_an_empty_cell_is_an_absent_field(kind: str) -> None:
    rows = [{"prompt": None, "question": "Warm?", "label": "a"}, {"prompt": None, "question": "Cold?", "label": "b"}]
    found = read_examples(KINDS[kind](rows), choices=("a", "b"))
    assert [e.kind for e in found.examples] == ["question", "question"]


# Refused


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (
            ["a", "b"],
            r"rows\[0\]: got str, expected a dict; expected a .jsonl, .csv or .parquet file, a hub data set, a list",
        ),
        ([GOOD, row(label=9)], r"rows\[1\]: got label 9, expected an index from 0 to 1"),
        ([{"review": "x", "label": "y"}], r"rows\[0\]: got the columns review, label, .*columns=\{'prompt': 'review'"),
        ([], "got no rows in rows, expected at least one"),
        (7, "got rows of type int, expected a .jsonl, .csv or .parquet file"),
        ({"prompt": ["x"]}, "got rows of type dict, expected"),
        (
            datasets.DatasetDict({"train": news(), "test": news()}),
            r"got the splits train, test, .*pass rows\['train'\]",
        ),
    ],
)
def test_rows_that_are_none_are_refused(rows: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_examples(rows, choices=None if rows and rows != ["a", "b"] and isinstance(rows, list) else NAMES)


@pytest.mark.parametrize("name", ["rows.txt", "rows.TSV", "rows.xlsx", "rows"])
def test_a_file_of_another_kind_is_not_looked_for_on_the_hub(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(datasets, "load_dataset", None)
    (tmp_path / name).write_text("prompt,label\nHelp!,a\n")
    with pytest.raises(DataError, match=rf"got .*{name}, expected a name that ends in \.jsonl, \.csv, \.parquet: save"):
        read_examples(str(tmp_path / name))


@pytest.mark.parametrize("separator", [";", "\t", "|"])
def test_columns_that_are_not_separated_by_commas_are_refused(tmp_path: Path, separator: str) -> None:
    file = tmp_path / "sheet.csv"
    file.write_text(f"prompt{separator}label\nHelp!{separator}a\n")
    with pytest.raises(DataError, match="sheet.csv:1: got columns that are separated by .*, expected commas: save"):
        read_examples(str(file), columns={"prompt": "prompt"})


def test_where_no_row_has_a_label_the_columns_are_named() -> None:
    rows = [{"prompt": f"{number}", "intent": "a"} for number in range(20)]
    told = "^got no label in any row of rows, with the columns prompt, intent, .* label=NAME[^\n]*$"
    with pytest.raises(DataError, match=told):
        label_set(read_table(rows))
    with pytest.raises(DataError, match=told):
        read_examples(rows, choices=("a", "b"))


def test_a_cell_may_be_long(tmp_path: Path) -> None:
    file = tmp_path / "long.csv"
    file.write_text(f"prompt,label,page\nHelp!,a,{'<p>' * 100_000}\nWhy?,b,\n")
    assert len(read_examples(str(file), choices=("a", "b")).examples) == 2


def test_a_choice_may_begin_with_a_bracket(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,choices,label\nReady?,[draft] | final,final\n")
    assert plain(read_examples(str(file))) == [("prompt", "Ready?", ("[draft]", "final"), 1)]


def test_a_column_that_comes_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "joined.csv"
    file.write_text("prompt,label,,,label\nHelp!,a,,,b\n")
    with pytest.raises(DataError, match="joined.csv:1: got the column 'label' twice, expected it once: rename one"):
        read_examples(str(file))


def test_a_column_that_we_do_not_have_is_refused() -> None:
    with pytest.raises(ConfigError, match="got columns for text, expected some of question, prompt, messages, choices"):
        read_table([GOOD], columns={"text": "question"})


def test_a_limit_takes_rows_from_the_top_and_checks_them_all(tmp_path: Path) -> None:
    rows = toy_data(5)
    assert plain(read_examples(rows, limit=2)) == plain(read_examples(rows))[:2]
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps(GOOD) + "\n{\n")
    with pytest.raises(DataError, match="rows.jsonl:2: this line is not JSON"):
        read_examples(file, limit=1)


def test_a_frame_with_a_column_twice_is_refused_as_a_file_is() -> None:
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame([["Which?", "ice", "fire"]], columns=["question", "label", "label"])
    with pytest.raises(DataError, match="DataFrame: got the column 'label' twice, expected it once"):
        read_examples(frame, choices=("ice", "fire"))
