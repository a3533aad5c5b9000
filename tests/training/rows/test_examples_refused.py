"""Malformed training data: the error names the file and line of every bad row."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from blora.errors import DataError
from blora.training.rows.examples import read_examples
from tests.training.toys import GOOD, row, write_jsonl

# Malformed rows

BAD_ROWS: dict[str, tuple[Any, str]] = {
    "bad JSON": ('{"question": "Warm?",', r"this line is not JSON \(.+\); write one JSON object per line"),
    "nested beyond reading": ("[" * 100_000, "this line is not JSON"),
    "a field twice": (
        '{"question": "Warm?", "choices": ["ice", "fire"], "label": 0, "label": 1}',
        r"not JSON \(it has the field 'label' twice\)",
    ),
    "more choices than a request may have": (
        row(choices=[*map(str, range(256))], label=0),
        "got 256 choices, expected at most 255",
    ),
    "a list": ([1, 2], "got list, expected a JSON object"),
    "a text": ('"Warm?"', "got str, expected a JSON object"),
    "null": ("null", "got NoneType, expected a JSON object"),
    "no question": (row(question=None), "got the columns choices, label, expected one of question, prompt, messages"),
    "null question": ({**row(), "question": None}, "got none of question, prompt, messages, expected exactly one"),
    "question and prompt": (row(prompt="Warm?"), "got question and prompt of question, prompt, messages"),
    "three kinds": (row(prompt="W?", messages=[]), "got question and prompt and messages of"),
    "empty prompt": (row(question=None, prompt=""), "got prompt '', expected non-empty text"),
    "blank question": (row(question=" \n"), r"got question ' \\n', expected non-empty text"),
    "number as prompt": (row(question=None, prompt=7), "got prompt 7, expected non-empty text"),
    "list as question": (row(question=["Warm?"]), r"got question \['Warm\?'\], expected non-empty text"),
    "no choices": (row(choices=None), "got no choices, expected a list of them, or a fixed label set"),
    "zero choices": (row(choices=[]), "got no choices, expected at least 2"),
    "one choice": (row(choices=["fire"], label=0), "got one choice, expected at least 2"),
    "duplicate choices": (row(choices=["ice", "ice"]), "expected distinct ones"),
    "choices equal but for spaces": (row(choices=["ice", " ice "]), "expected distinct ones"),
    "choices in two spellings": (row(choices=["caf\u00e9", "cafe\u0301"]), "expected distinct ones"),
    "invisible choice": (row(choices=["ice", "\u200b"]), "expected a list of non-empty texts"),
    "empty choice": (row(choices=["ice", ""]), r"got choices \['ice', ''\], expected a list of non-empty texts"),
    "blank choice": (row(choices=["ice", "  "]), "expected a list of non-empty texts"),
    "number as choice": (row(choices=["ice", 3]), "expected a list of non-empty texts"),
    "choices as text": (row(choices="ice|fire"), r"got choices 'ice\|fire', expected a list of non-empty texts"),
    "choices by name": (row(choices={"a": "ice", "b": "fire"}), "expected a list of non-empty texts"),
    "letters without texts": (row(choices={"label": ["A", "B"]}), "got no choices"),
    "more letters than texts": (
        row(choices={"text": ["ice", "fire"], "label": ["A", "B", "C"]}, label="C"),
        "got 3 labels for 2 choices",
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
    "index out of range": (row(label_index=2), "got label_index 2, expected an index from 0 to 1"),
    "index as text": (row(label_index="1"), "got label_index '1', expected the index of the right choice"),
    "index as bool": (row(label_index=True), "got label_index True, expected the index of the right choice"),
    "label in other letters": (
        row(choices=["Ice", "Fire"], label="fIRE"),
        r"got label 'fIRE', .* or an index; is 'Fire' meant\?",
    ),
    "misspelt label": (row(label="fir"), r"got label 'fir', .* or an index; is 'fire' meant\?"),
    "one of many labels": (
        row(choices=[f"choice {number}" for number in range(77)], label="none"),
        r"got label 'none', expected one of \['choice 0', .*, 'choice 9'\] and 67 more or an index",
    ),
    "key that is a number": (
        row(label=None, answerKey="1"),
        r"got answerKey '1', expected one of \['ice', 'fire'\]; send a position as label_index, counted from 0, or the letters",
    ),
    "key that is no letter": (
        row(choices={"text": ["ice", "fire"], "label": ["A", "B"]}, label=None, answerKey=1),
        r"got answerKey 1, expected one of \['A', 'B'\]; send a position as label_index",
    ),
    "half a surrogate pair": (
        row(question="a \ud800 b"),
        r"got half of a surrogate pair, '\\ud800', at character 2 of 'a \\ud800 b', expected whole Unicode",
    ),
    "half a pair in a choice": (row(choices=["ice", "fire", "\udc00"]), "got half of a surrogate pair"),
    "half a pair in a message": (
        row(question=None, messages=[{"role": "user", "content": "\ud800"}]),
        "got half of a surrogate pair",
    ),
    "unknown label text": (row(label_text="1"), r"got label_text '1', expected one of \['ice', 'fire'\]"),
    "label text that is no text": (row(label_text=1), r"got label_text 1, expected one of \['ice', 'fire'\]"),
    "index and text apart": (
        row(label_index=0, label_text="fire"),
        "got label_index 0, which is 'ice', and label_text 'fire'; expected the same choice, or one of the two",
    ),
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
    "unknown label": (
        row(choices=None, label="ice"),
        ("no", "yes"),
        r"got label 'ice', expected one of \['no', 'yes'\]",
    ),
    "one choice": (row(choices=None, label=0), ("yes",), "got one choice, expected at least 2"),
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
    "Latin 1": (
        "rows.jsonl",
        b'{}\n{}\n{"question": "caf\xe9"}\n',
        3,
        "got bytes that are not UTF-8; save the file as",
    ),
    "Latin 1 CSV": ("rows.csv", HEADER.encode() + b"caf\xe9,a|b,0\n", 2, "got bytes that are not UTF-8"),
    "too few columns": (
        "rows.csv",
        (HEADER + FIRST + "Cold?,ice|fire\n").encode(),
        3,
        "columns, expected the header's 3",
    ),
    "too many columns": (
        "rows.csv",
        (HEADER + "Cold?,ice,fire,0\n").encode(),
        2,
        "columns, expected the header's 3",
    ),
    "the header again": (
        "rows.csv",
        (HEADER + FIRST + HEADER + FIRST).encode(),
        3,
        "got the header again, expected a row: remove this line",
    ),
    "text after a quote": (
        "rows.csv",
        (HEADER + FIRST + '"Cold"?,ice|fire,0\n').encode(),
        3,
        "this row is not CSV",
    ),
    "open quote": ("rows.csv", (HEADER + '"Cold?,ice|fire,0\n').encode(), 2, "this row is not CSV"),
    "choices that are not JSON": ("rows.csv", (HEADER + "Cold?,[ice|fire],0\n").encode(), 2, r"got choices '\[ice"),
    "unknown column": (
        "rows.csv",
        b"text,choices,label\nCold?,ice|fire,0\n",
        1,
        "got the columns text, choices, label, expected one of question, prompt, messages: rename text to question",
    ),
    "empty cell for the question": ("rows.csv", (HEADER + ",ice|fire,0\n").encode(), 2, "got none of question, prompt"),
    "no label in CSV": ("rows.csv", (HEADER + "Warm?,ice|fire,1\nCold?,ice|fire,\n").encode(), 3, "got no label, exp"),
    "a blank label in CSV": (
        "rows.csv",
        (HEADER + "Warm?,ice|fire,1\nCold?,ice|fire,  \n").encode(),
        3,
        "got no label, exp",
    ),
    "messages that are not JSON": (
        "rows.csv",
        b"messages,choices,label\n[hi],ice|fire,0\n",
        2,
        "got messages that are",
    ),
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
    with pytest.raises(DataError, match=rf"data file .*{name} cannot be read \(No such file.*\); check"):
        read_examples(str(tmp_path / name))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").mkdir()
    with pytest.raises(DataError, match="cannot be read"):
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


@pytest.mark.parametrize(
    ("columns", "advice"),
    [
        (("id", "text", "label"), "rename text to question"),
        (("label", "Prompt ", "text"), "rename Prompt  to question"),
        (("promt", "label", "when"), "rename promt to question"),
        (("label", "review"), "rename review to question"),
        (("label", "first", "second"), "rename the one that holds the text to question"),
    ],
)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_a_file_without_a_column_for_the_question_is_told_once(
    tmp_path: Path, name: str, columns: tuple[str, ...], advice: str
) -> None:
    file = tmp_path / name
    if name.endswith(".csv"):
        file.write_text("\n".join([",".join(columns), *[",".join("x" for _ in columns)] * 20]))
    else:
        write_jsonl(file, [dict.fromkeys(columns, "x")] * 20)
    with pytest.raises(DataError) as caught:
        read_examples(str(file), choices=("x", "y"))
    [line] = str(caught.value).splitlines()
    assert line.startswith(
        f"{file}:1: got the columns {', '.join(columns)}, expected one of question, prompt, messages"
    )
    assert advice in line
    assert line.endswith("unless --template says otherwise, a prompt as it is")
