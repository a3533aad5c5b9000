"""Questions in files of three kinds."""

import json
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

from blora.errors import DataError
from blora.server.rows import read_questions

ROWS: list[dict[str, Any]] = [
    {"prompt": "one", "choices": ["a", "b"], "label": 1, "id": "x"},
    {"question": "two, with a comma", "choices": "a | b|c"},
    {"prompt": 'three\n"quoted"', "question": "not this", "choices": None},
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
    assert list(read_questions(file)) == [*EXPECTED, chat, {}, {}]


def test_csv(tmp_path: Path) -> None:
    file = tmp_path / "rows.csv"
    file.write_text(
        'id,prompt,question,choices\nx,one,,a|b\n,,"two, with a comma",a | b|c\n,"three\n""quoted""",not this,\n'
    )
    assert list(read_questions(file)) == EXPECTED


def test_what_training_reads_is_read(tmp_path: Path) -> None:
    csv, jsonl = tmp_path / "rows.csv", tmp_path / "rows.jsonl"
    csv.write_text('prompt,choices\nx,"[""a"", ""b|c""]"\ny,"[not json"\n', encoding="utf-8-sig")
    assert list(read_questions(csv)) == [
        {"prompt": "x", "choices": ["a", "b|c"]},
        {"prompt": "y", "choices": ["[not json"]},
    ]
    jsonl.write_text('{"prompt": "x"}\n\n  \n{"prompt": "y"}\n', encoding="utf-8-sig")
    assert list(read_questions(jsonl)) == [{"prompt": "x"}, {"prompt": "y"}]


def test_parquet(tmp_path: Path) -> None:
    file = tmp_path / "rows.PARQUET"
    columns = {name: [row.get(name) for row in ROWS] for name in ("prompt", "question")}
    columns["choices"] = [["a", "b"], ["a", "b", "c"], None]
    pyarrow.parquet.write_table(pyarrow.table(columns), file)
    assert list(read_questions(file)) == EXPECTED


def test_a_row_is_read_when_it_is_asked_for(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    with file.open("w") as rows:
        for k in range(100_000):
            rows.write(f'{{"prompt": "{k}"}}\n')
    questions = read_questions(file)
    assert next(questions) == {"prompt": "0"}
    with file.open("r+") as rows:
        rows.truncate(0)
    assert sum(1 for _ in questions) < 50_000


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("rows.txt", b"", r"expected a name that ends in \.jsonl, \.csv, \.parquet"),
        ("rows.parquet", b"nonsense", r"cannot be read .* expected a \.parquet file"),
        ("rows.jsonl", b"\xff\xfe", r"cannot be read .* expected a \.jsonl file"),
    ],
)
def test_what_cannot_be_read_is_told(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(DataError, match=message):
        list(read_questions(file))
