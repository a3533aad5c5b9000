"""Reading labelled questions from JSONL, CSV or a hub data set; a malformed row is named with its file and line.

A row has one of question, prompt or messages; its choices, unless the label set is fixed for all; and a label, see
`blora.training.labels`. ARC's hub form (choices as {"text", "label"} and answerKey) is understood.
"""

import csv
import hashlib
import io
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from blora.columns import QUESTION_COLUMNS as KINDS
from blora.columns import no_question
from blora.errors import DataError
from blora.posterior.noise import generator_of
from blora.training.labels import Label, RowError, read_label, settle

__all__ = ["Example", "ExampleSet", "read_examples", "split_examples"]

TEMPLATES_TOLD = 'a question is asked as "Question: ... Answer:" unless --template says otherwise, a prompt as it is'
DEFAULT_TEMPLATES = {"question": "Question: {prompt}\nAnswer:", "prompt": "{prompt}", "messages": "{prompt}"}
REPORTED = 10  # malformed rows named in one message


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled question.

    Attributes:
        where: file and line, for error messages.
        kind: question, prompt or messages: which field it came from.
        prompt: the text, None for messages.
        messages: the chat, None for text.
        choices: two or more distinct texts.
        label: index of the right one.
    """

    where: str
    kind: str
    prompt: str | None
    messages: tuple[Mapping[str, str], ...] | None
    choices: tuple[str, ...]
    label: int

    @property
    def identity(self) -> str:
        """What rows with the same question share: neither the order of the choices, nor white space, nor the label."""
        turns = [[turn["role"], _plain(turn["content"])] for turn in self.messages or ()]
        return json.dumps([_plain(self.prompt or ""), turns, sorted(map(_plain, self.choices))])


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Examples of one kind, and where they came from.

    Attributes:
        source: file name or hub id.
        digest: sha256 of the rows as read.
        examples: at least one.
    """

    source: str
    digest: str
    examples: tuple[Example, ...]

    @property
    def template(self) -> str:
        """The default prompt template of this kind of example."""
        return DEFAULT_TEMPLATES[self.examples[0].kind]


def read_examples(source: str, *, choices: Sequence[str] | None = None, split: str = "train") -> ExampleSet:
    """Read every row of a data set.

    Args:
        source: a .jsonl or .csv file, or a hub data set as owner/name or owner/name:config.
        choices: the fixed label set, for rows that bring none of their own.
        split: of a hub data set.

    Raises:
        DataError: naming each malformed row with its file and line.
    """
    path = Path(source)
    untyped = path.suffix.lower() == ".csv"
    if path.suffix.lower() in (".jsonl", ".csv"):
        rows = _file_rows(path)
        name = path.name
    else:
        rows = _hub_rows(source, split)
        name = f"{source}/{split}"
    digest = hashlib.sha256()
    read: list[tuple[Example, Label]] = []
    problems: list[str] = []
    for where, row in rows:
        try:
            if isinstance(row, str):
                raise RowError(row)
            if not read and not problems and not untyped:  # of a CSV the header was checked
                _check_columns(row, where)
            digest.update(json.dumps(row, sort_keys=True, default=str).encode())
            read.append(_parse(row, where, choices, untyped=untyped))
        except RowError as exc:
            problems.append(f"{where}: {exc}")
    settled = list(zip(read, settle([label for _, label in read]), strict=True))
    # Only when all rows are well-formed is it known what the others say.
    problems = problems or [_undecided(example, label) for (example, label), meant in settled if meant is None]
    if problems:
        more = f"\nand {len(problems) - REPORTED} more" if len(problems) > REPORTED else ""
        raise DataError("\n".join(problems[:REPORTED]) + more)
    examples = [replace(example, label=meant) for (example, _), meant in settled if meant is not None]
    if not examples:
        raise DataError(f"got no rows in {source}, expected at least one")
    if len(kinds := {example.kind: example.where for example in examples}) > 1:
        raise DataError(f"got rows of different kinds ({kinds}), expected one of {', '.join(KINDS)} throughout")
    return ExampleSet(name, f"sha256:{digest.hexdigest()}", tuple(examples))


def split_examples(
    examples: ExampleSet, n_train: int | None, n_validation: int | None, *, seed: int
) -> tuple[ExampleSet, ExampleSet]:
    """Divide examples into training and validation ones in a seeded random order, each question in one part only.

    Rows with the same question (see `Example.identity`) stay together, in the training part while all of them fit
    there. A part may then have fewer rows than asked for, where only larger groups are left.

    Args:
        examples: at least two.
        n_train: how many to train on; nine tenths by default.
        n_validation: how many of the rest to validate on; all by default.
        seed: of the order.

    Raises:
        DataError: if there are too few.
    """
    total = len(examples.examples)
    n_train = n_train if n_train is not None else total * 9 // 10
    most = n_validation if n_validation is not None else total
    n_validation = n_validation if n_validation is not None else total - n_train
    train: list[Example] = []
    validation: list[Example] = []
    if n_train >= 1 and n_validation >= 1 and n_train + n_validation <= total:
        copies: dict[str, list[Example]] = {}
        for i in torch.randperm(total, generator=generator_of(seed)).tolist():
            copies.setdefault(examples.examples[i].identity, []).append(examples.examples[i])
        for group in copies.values():
            if len(train) + len(group) <= n_train:
                train += group
            elif len(validation) + len(group) <= most:
                validation += group
    if not train or not validation:
        raise DataError(
            f"got {total} rows in {examples.source}, expected {n_train} to train and {n_validation} to validate on "
            "without a question in both; lower --train-examples or --validation-examples, or give a --validation file"
        )
    return (
        ExampleSet(examples.source, examples.digest, tuple(train)),
        ExampleSet(examples.source, examples.digest, tuple(validation)),
    )


def _file_rows(path: Path) -> Iterator[tuple[str, dict[str, Any] | str]]:
    """Each row with its place, or what is wrong with it."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise DataError(f"data file {path} cannot be read ({exc.strerror}); check the path") from exc
    except UnicodeDecodeError as exc:
        line = exc.object[: exc.start].count(b"\n") + 1
        raise DataError(f"{path}:{line}: got bytes that are not UTF-8; save the file as UTF-8") from exc
    if path.suffix.lower() == ".csv":
        yield from _csv_rows(path, text)
        return
    for number, content in enumerate(text.split("\n"), start=1):
        if not content.strip():
            continue
        try:
            row = json.loads(content)
        except (ValueError, RecursionError) as exc:
            yield f"{path}:{number}", f"this line is not JSON ({exc}); write one JSON object per line"
            continue
        yield f"{path}:{number}", row if isinstance(row, dict) else f"got {type(row).__name__}, expected a JSON object"


def _csv_rows(path: Path, text: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    header: list[str] | None = None
    first_line = 1  # of the row being read, which may span several
    try:
        for cells in reader:
            where, first_line = f"{path}:{first_line}", reader.line_num + 1
            if not cells:
                continue  # a blank line
            if header is None:
                header = cells
                _check_columns(header, where)
            elif len(cells) != len(header):
                yield where, f"got {len(cells)} columns, expected the header's {len(header)}"
            else:
                yield where, _csv_types(dict(zip(header, cells, strict=True)))
    except csv.Error as exc:
        yield f"{path}:{first_line}", f"this row is not CSV ({exc})"


def _check_columns(columns: Collection[str], where: str) -> None:
    """Refuse a file whose first row has no column for the question: what is said of it would be said of every row."""
    if not set(KINDS) & set(columns):
        raise DataError(f"{where}: {no_question(columns)}; {TEMPLATES_TOLD}")


def _csv_types(row: Mapping[str, str]) -> dict[str, Any]:
    """CSV has only text: choices are a JSON list or separated by |, messages are JSON, empty cells are absent."""
    typed: dict[str, Any] = {key: value for key, value in row.items() if value != ""}
    for key in ("choices", "messages"):
        if isinstance(text := typed.get(key), str):
            if not text.lstrip().startswith("["):
                typed[key] = [part.strip() for part in text.split("|")]
                continue
            try:
                typed[key] = json.loads(text)
            except (ValueError, RecursionError):
                continue  # left as text, which the checks of the row refuse
    return typed


def _hub_rows(source: str, split: str) -> Iterator[tuple[str, dict[str, Any] | str]]:
    from datasets import load_dataset  # slow to import, and only the hub needs it

    name, _, config = source.partition(":")
    try:
        rows = load_dataset(name, config or None, split=split)
    except Exception as exc:  # every failure of the library, network included
        raise DataError(
            f"got data set {source!r}, which is neither a .jsonl or .csv file nor a data set that loads ({exc})"
        ) from exc
    for number, row in enumerate(rows, start=1):
        yield f"{source}/{split}:{number}", dict(row)


def _parse(row: Mapping[str, Any], where: str, fixed: Sequence[str] | None, *, untyped: bool) -> tuple[Example, Label]:
    """Return a row as an example whose label is still open, and what the label may mean."""
    present = [kind for kind in KINDS if row.get(kind) is not None]
    if not present and not untyped and not set(KINDS) & set(row):
        raise RowError(no_question(row))
    if len(present) != 1:
        raise RowError(f"got {' and '.join(present) or 'none'} of {', '.join(KINDS)}, expected exactly one")
    kind = present[0]
    prompt = messages = None
    if kind == "messages":
        messages = _messages(row[kind])
    else:
        prompt = row[kind]
        if not isinstance(prompt, str) or not prompt.strip():
            raise RowError(f"got {kind} {prompt!r}, expected non-empty text")
    choices, letters = _choices(row.get("choices"), fixed)
    label = read_label(row, choices, letters, untyped=untyped)
    return Example(where, kind, prompt, messages, choices, label=-1), label


def _undecided(example: Example, label: Label) -> str:
    assert label.index is not None
    assert label.text is not None
    return (
        f"{example.where}: got label {label.index}, which is the index of {example.choices[label.index]!r} and also "
        f"stands for {example.choices[label.text]!r}, and the other rows do not say which is meant; expected "
        "label_index or label_text"
    )


def _messages(value: Any) -> tuple[Mapping[str, str], ...]:
    if not isinstance(value, list) or not value:
        raise RowError("got messages that are not a non-empty list of {role, content}")
    for message in value:
        if not (
            isinstance(message, dict)
            and message.get("role") in ("system", "user", "assistant")
            and isinstance(message.get("content"), str)
            and message["content"].strip()
        ):
            raise RowError(f"got message {message!r}, expected role system, user or assistant and non-empty content")
    return tuple({"role": message["role"], "content": message["content"]} for message in value)


def _choices(value: Any, fixed: Sequence[str] | None) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The choices, and the letters they go by in ARC's form (none elsewhere)."""
    letters: tuple[str, ...] = ()
    if isinstance(value, dict) and isinstance(value.get("label"), list):
        letters = tuple(map(str, value["label"]))
        value = value.get("text")
    if value is None:
        if fixed is None:
            raise RowError("got no choices, expected a list of them, or a fixed label set given with --choices")
        value = list(fixed)
    elif fixed is not None and value != list(fixed):
        raise RowError(f"got choices {value!r}, expected none or the fixed label set {list(fixed)!r}")
    if not isinstance(value, list) or not all(isinstance(choice, str) and choice.strip() for choice in value):
        raise RowError(f"got choices {value!r}, expected a list of non-empty texts")
    if len(value) < 2:
        raise RowError(f"got {'one choice' if value else 'no choices'}, expected at least 2")
    if len({choice.strip() for choice in value}) < len(value):
        raise RowError(f"got choices {value!r}, expected distinct ones")
    if letters and len(letters) != len(value):
        raise RowError(f"got {len(letters)} labels for {len(value)} choices, expected one each")
    return tuple(value), letters


def _plain(text: str) -> str:
    return " ".join(text.split())
