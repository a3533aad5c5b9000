"""Numbers as labels, read as an index or as the text of a choice, alike in JSONL and CSV."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from blora.errors import DataError
from blora.training.rows.examples import examples_of, read_examples
from blora.training.rows.labels import label_set
from blora.training.rows.sources import read_table
from tests.training.toys import row, write_jsonl

DIGITS = ["1", "2", "3", "4"]
Rows = Sequence[tuple[Sequence[str], dict[str, Any]]]


def both_formats(tmp_path: Path, rows: Rows) -> tuple[Path, Path]:
    """The same choices and label fields as JSONL and as CSV."""
    jsonl = write_jsonl(tmp_path / "rows.jsonl", [row(choices=list(c), label=None) | fields for c, fields in rows])
    names = list(dict.fromkeys(name for _, fields in rows for name in fields))
    with (tmp_path / "rows.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["question", "choices", *names])
        writer.writerows(["Which?", "|".join(c), *(fields.get(name, "") for name in names)] for c, fields in rows)
    return jsonl, tmp_path / "rows.csv"


ALIKE: dict[str, tuple[Rows, list[int]]] = {
    "an index": ([(["ice", "fire"], {"label": 1})], [1]),
    "the text of a choice where there is no such index": ([(["10", "20", "30"], {"label": 20})], [1]),
    "the same either way": ([(["0", "1", "2"], {"label": 2})], [2]),
    "indices, as another row says": ([(DIGITS, {"label": 2}), (["ice", "fire"], {"label": 0})], [2, 0]),
    "indices, as a zero says": ([(DIGITS, {"label": 2}), (DIGITS, {"label": 0})], [2, 0]),
    "texts, as the last choice says": ([(DIGITS, {"label": 2}), (DIGITS, {"label": 4})], [1, 3]),
    "texts say nothing about numbers": ([(["ice", "fire"], {"label": "fire"}), (DIGITS, {"label": 4})], [1, 3]),
    "an explicit index": ([(DIGITS, {"label_index": 2})], [2]),
    "an explicit text": ([(DIGITS, {"label_text": "3"})], [2]),
    "explicit fields that agree": ([(DIGITS, {"label_index": 2, "label_text": "3"})], [2]),
    "a label that counts otherwise": ([(DIGITS, {"label_index": 2, "label": 1})], [2]),
    "a text with white space around it": ([(["ice", "fire"], {"label": " fire "})], [1]),
    "a choice with white space around it": ([(["ice ", "fire"], {"label": "ice"})], [0]),
    "an explicit text in another Unicode form": ([(["caf\u00e9", "bar"], {"label_text": "cafe\u0301"})], [0]),
    "a letter beside the text": ([(DIGITS, {"label_text": "3", "answerKey": "1"})], [2]),
}


@pytest.mark.parametrize("name", ALIKE)
def test_both_formats_read_a_label_alike(tmp_path: Path, name: str) -> None:
    rows, labels = ALIKE[name]
    for file in both_formats(tmp_path, rows):
        assert [example.label for example in read_examples(str(file)).examples] == labels, file.suffix


REFUSED: dict[str, Rows] = {
    "one row alone": [(DIGITS, {"label": 2})],
    "rows that say nothing": [(DIGITS, {"label": 2}), (["ice", "fire"], {"label": "fire"})],
    "rows that disagree": [(DIGITS, {"label": 2}), (DIGITS, {"label": 4}), (["ice", "fire"], {"label": 0})],
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_number_that_may_be_either_is_refused(tmp_path: Path, name: str) -> None:
    message = (
        ":[12]: got label 2, which is the index of '3' and also stands for '2', and the other rows do not say which is "
        "meant; expected label_index or label_text$"
    )
    for file in both_formats(tmp_path, REFUSED[name]):
        with pytest.raises(DataError, match=message):
            read_examples(str(file))


@pytest.mark.parametrize(("key", "label"), [("2", 1), (2, None)])
def test_arcs_letters_may_be_digits_but_a_number_is_no_letter(
    tmp_path: Path, key: str | int, label: int | None
) -> None:
    arc = {"text": ["a", "b", "c"], "label": ["1", "2", "3"]}
    file = write_jsonl(tmp_path / "rows.jsonl", [row(choices=arc, label=None, answerKey=key)])
    if label is None:
        with pytest.raises(DataError, match="got label 2, which is the index of 'c' and also stands for 'b'"):
            read_examples(str(file))
    else:
        assert read_examples(str(file)).examples[0].label == label


@pytest.mark.parametrize("key", ["1", "0"])
def test_a_number_as_key_without_letters_is_refused_unless_it_is_a_choice(tmp_path: Path, key: str) -> None:
    rows: Rows = [(["a", "b", "c", "d"], {"answerKey": key})]
    for file in both_formats(tmp_path, rows):
        with pytest.raises(DataError, match=rf":[12]: got answerKey '{key}', expected one of \['a', .*label_index"):
            read_examples(str(file))
    for file in both_formats(tmp_path, [(["3", "4"], {"answerKey": "4"})]):
        assert read_examples(str(file)).examples[0].label == 1


def test_digits_in_quotes_are_no_index_of_another_choice(tmp_path: Path) -> None:
    rows = [row(choices=DIGITS, label="2"), row(choices=["ice", "fire"], label="ice")]
    for source in (write_jsonl(tmp_path / "rows.jsonl", rows), rows):
        assert [example.label for example in read_examples(source).examples] == [1, 0]


def test_digits_in_quotes_are_indices_if_those_of_another_row_are(tmp_path: Path) -> None:
    rows = [(DIGITS, {"label": "2"}), (["ice", "fire"], {"label": "1"}), (DIGITS, {"label": "1"})]
    for file in both_formats(tmp_path, rows):
        assert [example.label for example in read_examples(file).examples] == [2, 1, 1], file.suffix
    for file in both_formats(tmp_path, [*rows, (DIGITS, {"label": "4"})]):
        with pytest.raises(DataError, match="got label 2, which is the index of '3' and also stands for '2'"):
            read_examples(file)


def test_one_wrong_number_in_quotes_makes_no_indices_of_the_others() -> None:
    rows = [row(choices=["1", "2", "4", "5"], label=label) for label in ("1", "2", "3")]
    with pytest.raises(DataError, match=r"rows\[2\]: got label '3', expected one of .* as labels of other rows"):
        read_examples(rows)


def test_labels_of_a_frame_with_a_gap_are_told_how_to_become_whole_numbers() -> None:
    frame = pd.DataFrame({"prompt": ["a", "b", "c"], "label": [0, 1, None]}).dropna(subset=["label"])
    with pytest.raises(DataError, match=r"got label 0\.0, expected .*: convert it, as with \.astype\('Int64'\)"):
        read_examples(frame, choices=("ice", "fire"))
    frame["label"] = frame["label"].astype("Int64")
    assert [example.label for example in read_examples(frame, choices=("ice", "fire")).examples] == [0, 1]


def test_choices_of_a_row_may_be_a_tuple() -> None:
    [example] = read_examples([row(choices=("ice", "fire"), label="fire")]).examples
    assert (tuple(example.choices), example.label) == (("ice", "fire"), 1)


MIXED: dict[str, tuple[list[Any], str]] = {
    "a text that is no choice": (
        ["1", "2", "4", "5", "3"],
        r"rows\[4\]: got label '3', expected one of \['1', '2', '4', '5'\]",
    ),
    "numbers": ([5, 4, 0], r"rows\[2\]: got label '0', expected one of \['1', "),
    "as many of either": ([5, 0], r"rows\[1\]: got label '0', expected one of"),
    "one text among texts and a number": (["5", "1", 3], r"rows\[2\]: got label '3', expected one of"),
    "a number beyond the indices": ([0, 0, 2, 5], r"rows\[3\]: got label '5', expected an index from 0 to 3"),
}


@pytest.mark.parametrize("name", MIXED)
def test_numbers_that_are_indices_in_some_rows_and_texts_in_others_are_refused(name: str) -> None:
    labels, message = MIXED[name]
    rows = [row(choices=["1", "2", "4", "5"], label=label) for label in labels]
    with pytest.raises(DataError, match=f"^{message}[^\n]*correct the label$"):
        read_examples(rows)


def test_a_number_in_csv_that_is_no_choice_is_no_index_of_another(tmp_path: Path) -> None:
    sets = ["10", "20", "30"]
    _, file = both_formats(tmp_path, [(sets, {"label": label}) for label in (10, 20, 1)])
    with pytest.raises(DataError, match=r"rows.csv:4: got label '1', expected one of \['10', '20', '30'\]"):
        read_examples(str(file))


def test_a_text_says_that_numbers_are_texts() -> None:
    rows = [row(choices=DIGITS, label=label) for label in ("2", 3)]
    assert [example.label for example in read_examples(rows).examples] == [1, 2]


CODES = ("01", "02", "J45", "10")


@pytest.mark.parametrize(
    ("choices", "labels", "wrong"),
    [
        (CODES, ["02", "10", "J45", "0"], "0"),
        (("E11", "I10", "J45"), ["E11", "I10", "2"], "2"),
    ],
)
def test_beside_labels_in_words_a_number_is_no_index_of_a_fixed_label_set(
    tmp_path: Path, choices: tuple[str, ...], labels: list[str], wrong: str
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,label\n" + "".join(f"q{n},{label}\n" for n, label in enumerate(labels)))
    rows = [{"prompt": f"q{n}", "label": int(wrong) if label == wrong else label} for n, label in enumerate(labels)]
    first = labels.index(wrong)
    for source, where in ((file, rf"rows\.csv:{first + 2}"), (rows, rf"rows\[{first}\]")):
        with pytest.raises(DataError, match=f"{where}: got label '{wrong}', expected one of .* correct the label"):
            read_examples(source, choices=choices)


@pytest.mark.parametrize(
    ("choices", "labels", "meant"),
    [
        (("J45", "1", "0"), ["J45", "0", "1"], [0, 2, 1]),
        (CODES, ["J45", "1", "2", "10"], [2, 0, 1, 3]),  # 01 and 02, as a spreadsheet saves them
    ],
)
def test_beside_labels_in_words_a_number_is_a_text_of_a_fixed_label_set(
    tmp_path: Path, choices: tuple[str, ...], labels: list[str], meant: list[int]
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("prompt,label\n" + "".join(f"q{n},{label}\n" for n, label in enumerate(labels)))
    rows = [{"prompt": "q", "label": int(label) if label.isdecimal() else label} for label in labels]
    for source in (file, rows):
        assert [example.label for example in read_examples(source, choices=choices).examples] == meant


def test_a_number_that_is_the_value_of_a_choice_may_be_its_text() -> None:
    rows = [{"prompt": f"q{n}", "label": label} for n, label in enumerate([1, 2, 1, 2])]
    with pytest.raises(DataError, match="got label 1, which is the index of '02' and also stands for '01'"):
        read_examples(rows, choices=CODES)
    for another, meant in ((10, [0, 1, 0, 1, 3]), (3, [1, 2, 1, 2, 3])):  # no index, and no value
        decided = [*rows, {"prompt": "another", "label": another}]
        assert [example.label for example in read_examples(decided, choices=CODES).examples] == meant
    twice = ("1.0", "one", "001", "01")
    assert read_examples([{"prompt": "q", "label": 1}], choices=twice).examples[0].label == 1


@pytest.mark.parametrize("label", [2, "2"])
def test_a_label_text_may_be_a_whole_number(label: object) -> None:
    rows = [{"prompt": "q", "label_text": label}, {"prompt": "r", "label_text": 4}]
    assert [example.label for example in read_examples(rows, choices=("4", "2")).examples] == [1, 0]
    table = read_table(rows)
    assert label_set(table) == ("2", "4")
    assert [example.label for example in examples_of(table, label_set(table)).examples] == [0, 1]


def test_digits_of_other_scripts_are_no_index() -> None:
    with pytest.raises(DataError, match="got label '\u0661', expected one of"):
        read_examples([row(label="\u0661")])


def test_malformed_rows_are_told_before_any_doubt(tmp_path: Path) -> None:
    file = write_jsonl(tmp_path / "rows.jsonl", [row(choices=DIGITS, label=2), row(label=9)])
    with pytest.raises(DataError, match=r"^[^\n]*:2: got label 9, expected an index from 0 to 1$"):
        read_examples(str(file))


def test_a_label_that_contradicts_the_answer_key_is_refused() -> None:
    arc = {"text": ["ice", "fire"], "label": ["A", "B"]}
    for key in ("B", "fire"):
        assert read_examples([row(choices=arc, label=1, answerKey=key)]).examples[0].label == 1
        with pytest.raises(DataError, match="got label 'ice', and 'fire' by answerKey, expected the same choice"):
            read_examples([row(choices=arc, label="ice", answerKey=key)])


@pytest.mark.parametrize("explicit", [{"label_text": "fire"}, {"label_index": 1}])
def test_a_label_that_names_another_choice_than_the_explicit_fields_is_refused(explicit: dict[str, Any]) -> None:
    choices = ["ice", "fire"]
    with pytest.raises(DataError, match="got label 'ice', and 'fire' by label_text or label_index, expected the same"):
        read_examples([row(choices=choices, label="ice") | explicit])
    for label in ("fire", "C", 0):
        [example] = read_examples([row(choices=choices, label=label) | explicit]).examples
        assert example.label == 1


def test_the_column_that_is_named_as_the_label_is_the_only_one(tmp_path: Path) -> None:
    """Published data sets have a text beside the number, and some users a better label of their own."""
    one = {"question": "Which?", "choices": ["ice", "fire"], "label_text": "ice", "label_index": 0, "gold": "fire"}
    for source in ([one], write_jsonl(tmp_path / "rows.jsonl", [one])):
        [example] = read_examples(source, columns={"label": "gold"}).examples
        assert example.label == 1
        assert read_examples(source).examples[0].label == 0


@pytest.mark.parametrize("choices", [("False", "True"), ("false", "true"), ("no", "TRUE", "FALSE")])
def test_a_boolean_is_the_choice_that_says_it(choices: tuple[str, ...]) -> None:
    rows = [{"question": f"{value}?", "label": value} for value in (True, False)]
    labels = [choices[example.label].lower() for example in read_examples(rows, choices=choices).examples]
    assert labels == ["true", "false"]


def test_booleans_are_the_choices_of_rows_without_any() -> None:
    table = read_table([{"question": f"{value}?", "label": value} for value in (True, False, True)])
    choices = label_set(table)
    assert choices == ("False", "True")
    assert [example.label for example in examples_of(table, choices).examples] == [1, 0, 1]


def test_a_boolean_that_no_choice_says_is_refused() -> None:
    with pytest.raises(DataError, match="got label True, expected the index or the text of the right choice"):
        read_examples([row(choices=["ice", "fire"], label=True)])


@pytest.mark.parametrize("choices", [("yes", "no"), ("True", "False"), ("Y", "N")])
def test_a_number_for_yes_or_no_is_refused_unless_it_is_said_to_be_a_place(choices: tuple[str, ...]) -> None:
    question = {"question": "Is it urgent?"}
    with pytest.raises(
        DataError, match=rf"got label 1, which is '{choices[1]}' by its place and the other one by custom"
    ):
        read_examples([question | {"label": 1}], choices=choices)
    assert read_examples([question | {"label_index": 1}], choices=choices).examples[0].label == 1
    assert read_examples([question | {"label": 1}], choices=choices[::-1]).examples[0].label == 1
    assert read_examples([question | {"label": 1, "choices": list(choices)}]).examples[0].label == 1
