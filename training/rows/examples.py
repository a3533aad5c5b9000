"""Labelled questions from the rows of any source; errors name the place of each malformed row.

A row has exactly one of question, prompt and messages; choices, unless the label set is fixed for all rows; and a
label (see `blora.training.rows.labels`). ARC's format on the hub (choices as {"text", "label"} and answerKey) works
too, and so do requests with several labelled questions (see `blora.training.rows.questions`).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch

from blora.config import AdapterConfig
from blora.config.checks import require
from blora.config.head import MOST_CHOICES
from blora.errors import DataError
from blora.posterior.noise import generator_of
from blora.questions.columns import QUESTION_COLUMNS as KINDS
from blora.questions.columns import no_question
from blora.questions.spelling import half_pair, plain, seen
from blora.questions.wording import wording
from blora.training.caveats import warn_of_two_labels
from blora.training.rows.labels import Label, RowError, check_labelled, read_label, settle
from blora.training.rows.questions import ABOUT, DESCRIBED, Question, as_plain
from blora.training.rows.sources import Rows, Table, read_table

__all__ = [
    "Example",
    "ExampleSet",
    "examples_for",
    "examples_of",
    "one_for_each_text",
    "read_examples",
    "refuse_rows",
    "split_examples",
]

DEFAULT_TEMPLATES = {"question": "Question: {prompt}\nAnswer:", "prompt": "{prompt}", "messages": "{prompt}"}
REPORTED = 10  # most malformed rows named in one message


@dataclass(frozen=True, slots=True)
class Example:
    """One labelled question.

    Attributes:
        where: place of the row, such as file and line, for error messages.
        kind: the field that held the question: question, prompt or messages.
        prompt: the text of the question, None if it is a chat.
        messages: the chat, None if the question is a text.
        choices: two or more distinct texts.
        label: index of the correct choice.
        described: the choices with their descriptions, if they are offered without; None if they are not.
        about: the text that it is one of several questions about; None for a question by itself.
    """

    where: str
    kind: str
    prompt: str | None
    messages: tuple[Mapping[str, str], ...] | None
    choices: tuple[str, ...]
    label: int
    described: tuple[str, ...] | None = None
    about: str | None = None

    @property
    def identity(self) -> str:
        """Text that is equal for equal questions.

        The order of choices, white space, the Unicode form, zero-width characters, the label, whether descriptions are
        offered, and whether the question is a prompt or a chat of that one turn do not count.
        """
        turns = [[turn["role"], plain(turn["content"])] for turn in self.messages or ()]
        asked = turns if len(turns) > 1 else self.wording
        return json.dumps([asked, sorted(map(plain, self.described or self.choices))])

    @property
    def wording(self) -> str:
        """Question without its choices; equal for a prompt and for a chat of that one turn."""
        return plain(wording(self.prompt, (turn["content"] for turn in self.messages or ())))

    @property
    def text(self) -> str:
        """Text that is equal for questions about the same text, whose answers are not independent.

        It is the input of the request that the question is from, or else the question without its choices: the rows of
        a prompt such as "Which of these is true?" count as one text, whatever their choices are.
        """
        return self.wording if self.about is None else plain(self.about)


@dataclass(frozen=True, slots=True)
class ExampleSet:
    """Examples of one kind, with their source.

    Attributes:
        source: file name or hub id.
        digest: sha256 of the rows as read.
        examples: one or more examples.
    """

    source: str
    digest: str
    examples: tuple[Example, ...]

    @property
    def template(self) -> str:
        """The default prompt template of this kind of example."""
        return DEFAULT_TEMPLATES[self.examples[0].kind]

    @property
    def choices(self) -> tuple[str, ...]:
        """The choices that all examples have in the same order; empty if they have different ones."""
        first = self.examples[0].choices
        return first if all(example.choices == first for example in self.examples) else ()


def read_examples(
    source: Rows,
    *,
    choices: Sequence[str] | None = None,
    question: Question | None = None,
    split: str = "train",
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> ExampleSet:
    """Return the labelled questions of any source.

    Args:
        source: a file, a hub data set or a table in memory: see `blora.training.rows.sources.read_table`.
        choices: the label set of all rows, None if each row has its own choices.
        question: the fixed question to take from rows that are requests, None for all of their questions.
        split: the split of a hub data set to load.
        columns: our column names, mapped to the source's own names.
        limit: number of questions to return from the top, None for all; every row is checked all the same.

    Raises:
        DataError: if rows are malformed; the message names the place of each.
        ConfigError: if the limit is below 1.
    """
    return examples_of(as_plain(read_table(source, split=split, columns=columns), question), choices, limit)


def examples_for(
    config: AdapterConfig,
    source: Rows,
    *,
    split: str,
    columns: Mapping[str, str] | None = None,
    limit: int | None = None,
) -> ExampleSet:
    """Return the labelled questions of any source for an adapter, with its fixed choices and question, if any.

    Arguments and errors are those of `read_examples`.
    """
    return read_examples(
        source,
        choices=config.prompt.choices,
        question=Question.of(config),
        split=split,
        columns=columns,
        limit=limit,
    )


def examples_of(table: Table, choices: Sequence[str] | None, limit: int | None = None) -> ExampleSet:
    """Return the labelled questions of a table.

    Args:
        table: the rows under our column names.
        choices: the label set of all rows, None if each row has its own choices.
        limit: as for `read_examples`.

    Raises:
        DataError: if rows are malformed; the message names the place of each.
        ConfigError: if the limit is below 1.
    """
    _check_limit(limit)
    check_labelled(table)
    digest = hashlib.sha256()
    read: list[tuple[Example, Label]] = []
    problems: list[str] = []
    for where, row in table.rows:
        try:
            if isinstance(row, str):
                raise RowError(row)
            digest.update(_bytes_of(row))
            read.append(_parse(row, where, choices, untyped=table.untyped))
        except RowError as exc:
            problems.append(f"{where}: {exc}")
    settled = list(zip(read, settle([label for _, label in read], fixed=choices is not None), strict=True))
    # Ambiguous labels are decided by the other rows, so a malformed row would hide the evidence.
    problems = problems or [f"{example.where}: {meant}" for (example, _), meant in settled if isinstance(meant, str)]
    refuse_rows(problems)
    examples = [replace(example, label=meant) for (example, _), meant in settled if isinstance(meant, int)]
    if not examples:
        raise DataError(f"got no rows in {table.name}, expected at least one")
    if len(kinds := {example.kind: example.where for example in examples}) > 1:
        raise DataError(f"got rows of different kinds ({kinds}), expected one of {', '.join(KINDS)} throughout")
    warn_of_two_labels(map(_asked_and_labelled, examples))
    return ExampleSet(table.name, f"sha256:{digest.hexdigest()}", tuple(examples[:limit]))


def refuse_rows(problems: Sequence[str]) -> None:
    """Raise an error that names the first problems with rows, and the number of the others, if there are any.

    Args:
        problems: what is wrong with each malformed row, with its place.

    Raises:
        DataError: if there are problems.
    """
    if problems:
        more = f"\nand {len(problems) - REPORTED} more" if len(problems) > REPORTED else ""
        raise DataError("\n".join(problems[:REPORTED]) + more)


def one_for_each_text(examples: ExampleSet, *, seed: int, limit: int | None = None) -> ExampleSet:
    """Return one example for each text (see `Example.text`), chosen at random; the others are not independent of it.

    They keep the order of their rows. So of rows in random order the first ones are a random sample of the texts; the
    texts of the first rows are not, because a text with many rows is more likely to have one there.

    Args:
        examples: the examples.
        seed: seed of the choice.
        limit: number of examples to return, those of the earliest rows; None for all.

    Raises:
        ConfigError: if the limit is below 1.
    """
    _check_limit(limit)
    by_text: dict[str, list[int]] = {}
    for place, example in enumerate(examples.examples):
        by_text.setdefault(example.text, []).append(place)
    draws = torch.rand(len(by_text), generator=generator_of(seed)).tolist()
    drawn = sorted(places[int(draw * len(places))] for draw, places in zip(draws, by_text.values(), strict=True))
    return replace(examples, examples=tuple(examples.examples[place] for place in drawn[:limit]))


def _check_limit(limit: int | None) -> None:
    require(limit is None or limit >= 1, f"limit {limit}", "1 or more, or None for all rows")


def split_examples(
    examples: ExampleSet, n_train: int | None, n_validation: int | None, *, seed: int
) -> tuple[ExampleSet, ExampleSet]:
    """Divide examples at random into a training and a validation part, with no text in both.

    Rows about the same text (see `Example.text`) go to the same part: the training part if all of them still fit, else
    the validation part. A part may get fewer rows than requested if only larger groups are left.

    Args:
        examples: two or more examples.
        n_train: number of examples to train on; None for all others, or for nine tenths if `n_validation` is None too.
        n_validation: number of examples to validate on; None for all others.
        seed: seed of the random order.

    Raises:
        DataError: if there are too few examples for the two parts.
    """
    total = len(examples.examples)
    if n_train is None:
        n_train = total * 9 // 10 if n_validation is None else max(total - n_validation, 0)
    most = n_validation if n_validation is not None else total
    n_validation = n_validation if n_validation is not None else max(total - n_train, 0)
    train: list[Example] = []
    validation: list[Example] = []
    if n_train >= 1 and n_validation >= 1 and n_train + n_validation <= total:
        copies: dict[str, list[Example]] = {}
        for i in torch.randperm(total, generator=generator_of(seed)).tolist():
            copies.setdefault(examples.examples[i].text, []).append(examples.examples[i])
        for group in copies.values():
            if len(train) + len(group) <= n_train:
                train += group
            elif len(validation) + len(group) <= most:
                validation += group
    if not train or not validation:
        raise DataError(
            f"got {total} rows in {examples.source}, expected {n_train} to train and {n_validation} to validate on "
            "without a text in both; lower --train-examples or --validation-examples, or give validation rows"
        )
    return (
        ExampleSet(examples.source, examples.digest, tuple(train)),
        ExampleSet(examples.source, examples.digest, tuple(validation)),
    )


def _parse(row: Mapping[str, Any], where: str, fixed: Sequence[str] | None, *, untyped: bool) -> tuple[Example, Label]:
    """Return a row as an example with a placeholder label, and the possible meanings of its label."""
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
    described = tuple(row[DESCRIBED]) if DESCRIBED in row else None
    said = [turn["content"] for turn in messages or ()]
    if problem := half_pair((prompt or "", *said, *choices, *(described or ()))):
        raise RowError(problem)
    about = row.get(ABOUT)
    return Example(where, kind, prompt, messages, choices, label=-1, described=described, about=about), label


def _asked_and_labelled(example: Example) -> tuple[str, str, str]:
    """Return the place, the question and the label of an example."""
    choices = example.described or example.choices
    return example.where, example.identity, plain(choices[example.label])


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
    """Return the choices and, in ARC's format, their letters (otherwise empty)."""
    letters: tuple[str, ...] = ()
    if isinstance(value, dict) and isinstance(value.get("label"), list):
        letters = tuple(map(str, value["label"]))
        value = value.get("text")
    if value is None:
        if fixed is None:
            raise RowError("got no choices, expected a list of them, or a fixed label set, the same for all rows")
        value = list(fixed)
    elif fixed is not None and value != list(fixed):
        raise RowError(f"got choices {value!r}, expected none or the fixed label set {list(fixed)!r}")
    texts = isinstance(value, list) and all(isinstance(choice, str) for choice in value)
    shown = set(map(seen, value)) if texts else {""}
    if "" in shown:
        raise RowError(f"got choices {value!r}, expected a list of non-empty texts")
    if len(value) < 2:
        raise RowError(f"got {'one choice' if value else 'no choices'}, expected at least 2")
    if len(value) > MOST_CHOICES:
        raise RowError(f"got {len(value)} choices, expected at most {MOST_CHOICES}, as many as a request may have")
    if len(shown) < len(value):
        raise RowError(f"got choices {value!r}, expected distinct ones")
    if letters and len(letters) != len(value):
        raise RowError(f"got {len(letters)} labels for {len(value)} choices, expected one each")
    return tuple(value), letters


def _bytes_of(row: Mapping[str, Any]) -> bytes:
    """Return the content of a row for a digest, independent of the order of its columns."""
    try:
        return json.dumps(row, sort_keys=True, default=str).encode()
    except TypeError:  # keys in a value that JSON does not have, or that have no order
        return json.dumps({name: repr(value) for name, value in row.items()}, sort_keys=True).encode()
