"""Questions in JSONL, CSV and Parquet files."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from blora.errors import ConfigError, DataError
from blora.server.batch.rows import question_of, read_questions
from blora.training.rows.examples import read_examples


def asked(file: Path) -> list[dict[str, Any]]:
    return [row.asked for row in read_questions(file)]


ROWS: list[dict[str, Any]] = [
    {"prompt": "one", "choices": ["a", "b"], "label": 1, "id": "x"},
    {"question": "two, with a comma", "choices": "a | b|c"},
    {"prompt": 'three\n"quoted"', "question": None, "choices": None},
]
EXPECTED = [
    {"prompt": "one", "choices": ["a", "b"]},
    {"prompt": "two, with a comma", "choices": ["a", "b", "c"]},
    {"prompt": 'three\n"quoted"'},
]


def test_json_lines(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    chat = {"messages": [{"role": "user", "content": "four"}]}
    file.write_text("\n".join(map(json.dumps, [*ROWS, chat])) + "\n[1]\nnonsense\n")
    assert asked(file) == [*EXPECTED, chat, {}, {}]
    *good, listed, nonsense = read_questions(file)
    assert [(row.id, row.error) for row in good] == [("x", None), (None, None), (None, None), (None, None)]
    assert listed.error is not None
    assert (listed.error.code, str(listed.error)) == ("invalid_type", "got list, expected a JSON object")
    assert nonsense.error is not None
    assert nonsense.error.code == "invalid_json"
    assert str(nonsense.error).startswith("This line is not JSON (Expecting value")


def test_the_policy_of_a_logged_request_is_not_passed_over(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    logged = {"prompt": "x", "id": 7, "policy": {"min_confidence": 0.99}}
    insured = {"prompt": "x", "policy": "P-4711", "seed": 1}
    file.write_text("".join(json.dumps(row) + "\n" for row in (logged, insured, insured | {"policy": None})))
    refused, *read = read_questions(file)
    assert refused.error is not None
    assert (refused.id, refused.asked, refused.error.code) == (7, {}, "conflict")
    assert str(refused.error).startswith("got a policy in a row that is not the one for all rows: leave it out of the")
    same, *_ = read_questions(file, policy={"min_confidence": 0.99})
    assert (same.asked, same.error) == ({"prompt": "x"}, None)
    assert [(row.asked, row.error) for row in read] == [({"prompt": "x"}, None)] * 2


@pytest.mark.parametrize("policy", ['{"min_confidence": 0.99}', {"min_confidence": 0.99, "target_risk": None}])
def test_the_policy_of_a_logged_request_may_be_a_text_or_have_empty_fields(policy: object) -> None:
    row = {"prompt": "x", "policy": policy}
    refused = question_of(row)
    assert refused.error is not None
    assert refused.error.code == "conflict"
    assert question_of(row, {"min_confidence": 0.99}).error is None


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_row_has_one_question(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    if name == "rows.csv":
        file.write_text("id,question,prompt\n1,raw,made of it\n2,,made of it\n3,raw,\n")
    else:
        rows = [{"question": "raw", "prompt": "made of it"}, {"prompt": "made of it"}, {"question": "raw"}]
        file.write_text("".join(json.dumps(row | {"id": str(k)}) + "\n" for k, row in enumerate(rows, start=1)))
    both, *single = read_questions(file)
    assert both.error is not None
    assert (both.id, both.asked, both.error.code, both.error.status) == ("1", {}, "conflict", 422)
    assert str(both.error).startswith("got question and prompt, expected one of them: remove the other, or say with")
    assert [row.asked for row in single] == [{"prompt": "made of it"}, {"prompt": "raw"}]
    first, second, _ = read_questions(file, {"prompt": "prompt"})
    assert [first.asked, second.asked] == [{"prompt": "made of it"}] * 2


def test_choices_in_the_format_of_arc_are_read_as_in_training(tmp_path: Path) -> None:
    rows = [{"question": "2 + 2?", "choices": {"text": ["3", "4"], "label": ["A", "B"]}, "answerKey": "B"}]
    lines, table = tmp_path / "rows.jsonl", tmp_path / "rows.parquet"
    lines.write_text(json.dumps(rows[0]) + "\n")
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), table)
    for file in (lines, table):
        [example] = read_examples(file).examples
        assert asked(file) == [{"prompt": example.prompt, "choices": list(example.choices)}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_a_file_without_a_column_for_the_question_is_told_once(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    file.write_text("text,label\n" + "hello,1\n" * 9 if name == "rows.csv" else '{"text": "hello", "label": 1}\n' * 9)
    with pytest.raises(DataError, match=f"^{file}: got the columns text, label, .*: rename text to question"):
        next(read_questions(file))


@pytest.mark.parametrize("ours", ["prompt", "question"])
@pytest.mark.parametrize("other", ["prompt", "question", "messages"])
def test_the_column_that_is_named_as_the_question_is_the_only_one(tmp_path: Path, ours: str, other: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"note": "fever", other: [{"role": "user", "content": "an old chat"}]}) + "\n")
    [found] = read_questions(file, {ours: "note"})
    assert found.asked == {"prompt": "fever"}


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.csv"])
def test_mapped_columns_take_the_place_of_ours(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    row = {"text": "hello", "prompt": "not this", "options": "a|b", "number": "7"}
    file.write_text(f"{','.join(row)}\n{','.join(row.values())}\n" if name == "rows.csv" else json.dumps(row) + "\n")
    [found] = read_questions(file, {"prompt": "text", "choices": "options", "id": "number", "label": "intent"})
    assert (found.asked, found.id) == ({"prompt": "hello", "choices": ["a", "b"]}, "7")
    with pytest.raises(
        DataError, match="got the columns text, prompt, options, number, expected body, which --columns"
    ):
        next(read_questions(file, {"prompt": "body"}))
    with pytest.raises(ConfigError, match="got columns for promt, expected some of question, prompt"):
        next(read_questions(file, {"promt": "text"}))


def test_a_row_without_a_question_among_others_is_told_in_its_place(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"prompt": "x"}\n{"text": "y", "id": 2}\n' + "[" * 100_000 + "\n")
    first, second, third = read_questions(file)
    assert first.error is None
    assert second.error is not None
    assert second.id == 2
    assert (second.error.code, str(second.error)[:21]) == ("missing", "got the columns text,")
    assert third.error is not None
    assert third.error.code == "invalid_json"


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('id,prompt,question,choices\nx,one,,a|b\n,,"two, with a comma",a | b|c\n,"three\n""quoted""",,\n')
    assert asked(file) == EXPECTED


def test_a_row_with_more_cells_than_the_header_is_told_and_not_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text('id,question\n1,plain\n2,My invoice is wrong, please refund\n3,"quoted, with a comma"\n')
    plain, cut, quoted = read_questions(file)
    assert [plain.asked, quoted.asked] == [{"prompt": "plain"}, {"prompt": "quoted, with a comma"}]
    assert (cut.id, cut.asked) == ("2", {})
    assert cut.error is not None
    assert str(cut.error) == (
        "got 3 cells, expected the header's 2: put double quotes around cells that contain a comma"
    )


def test_a_row_with_fewer_cells_than_the_header_is_told_as_in_training(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("id,question\n1\n")
    [cut] = read_questions(file)
    assert cut.error is not None
    assert (cut.id, cut.error.code, str(cut.error)[:39]) == (
        "1",
        "invalid_length",
        "got 1 cells, expected the header's 2: p",
    )


@pytest.mark.parametrize("cell", ["[ice|fire]", " [ice | fire] "])
def test_brackets_around_choices_that_are_not_json_are_no_part_of_them(tmp_path: Path, cell: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt,choices\nx,{cell}\ny,[ice]|[fire]\n")
    assert [one["choices"] for one in asked(file)] == [cell, ["[ice]", "[fire]"]]


@pytest.mark.parametrize(("header", "found"), [("number,question,id", "1"), ("question,number,id", None)])
def test_a_row_with_more_cells_has_the_id_that_no_comma_moved(tmp_path: Path, header: str, found: str | None) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"{header}\n1,wrong, please,refund\n")
    [cut] = read_questions(file, {"id": "number"})
    assert cut.error is not None
    assert cut.id == found


@pytest.mark.parametrize(("rows", "line"), [('"Hello,1\nsecond,2\n', 2), ('first,1\n"sec"ond,2\nthird,3\n', 3)])
def test_a_quote_that_is_not_closed_takes_no_other_rows_in(tmp_path: Path, rows: str, line: int) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"question,id\n{rows}")
    with pytest.raises(DataError, match=rf"^{file}:{line}: this row is not CSV \(.*\): close each quote"):
        list(read_questions(file))


def test_a_long_cell_is_a_question_as_any_other(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    text = "a " * 100_000 + "a"
    file.write_text(f"question\n{text}\nshort\n")
    assert asked(file) == [{"prompt": text}, {"prompt": "short"}]


def test_what_training_reads_is_read(tmp_path: Path) -> None:
    csv, jsonl = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    csv.write_text('prompt,choices\nx,"[""a"", ""b|c""]"\ny,"[not json"\n', encoding="utf-8-sig")
    assert asked(csv) == [
        {"prompt": "x", "choices": ["a", "b|c"]},
        {"prompt": "y", "choices": ["[not json"]},
    ]
    jsonl.write_text('{"prompt": "x"}\n\n  \n{"prompt": "y"}\n', encoding="utf-8-sig")
    assert asked(jsonl) == [{"prompt": "x"}, {"prompt": "y"}]


@pytest.mark.parametrize("cell", ["[" * 100_000, f"[{'9' * 5000}]"])
def test_a_cell_that_no_parser_takes_is_a_text(tmp_path: Path, cell: str) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(f"prompt,choices\nx,{cell}\n")
    assert asked(file) == [{"prompt": "x", "choices": [cell]}]


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "rows.PARQUET"
    columns = {name: [row.get(name) for row in ROWS] for name in ("prompt", "question")}
    columns["choices"] = [["a", "b"], ["a", "b", "c"], None]
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    assert asked(file) == EXPECTED


def test_a_row_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("w") as rows:
        for k in range(100_000):
            rows.write(f'{{"prompt": "{k}"}}\n')
    questions = read_questions(file)
    assert next(questions).asked == {"prompt": "0"}
    with file.open("r+") as rows:
        rows.truncate(0)
    assert sum(1 for _ in questions) < 50_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("sheet.csv", b"prompt;id\nHelp!;3\n", "sheet.csv:1: got columns that are separated by ';', expected commas"),
        ("twice.csv", b"prompt,id,id\nHelp!,3,4\n", "twice.csv:1: got the column 'id' twice, expected it once"),
        ("rows.txt", b"", r"expected a name that ends in \.jsonl, \.csv, \.parquet"),
        ("rows.parquet", b"nonsense", r"cannot be read as a \.parquet file"),
        ("rows.jsonl", b"\xff\xfe", r"cannot be read as a \.jsonl file"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_questions(file))
