"""Rows that are requests become plain rows, and a question in a file becomes the adapter's."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import blora
from blora.config import AdapterConfig
from blora.errors import ConfigError, DataError
from blora.posterior.noise import generator_of
from blora.training.commands import train
from blora.training.rows.examples import examples_for, examples_of, one_for_each_text, read_examples, split_examples
from blora.training.rows.overlap import SEEN, check_disjoint, check_unseen, fingerprints
from blora.training.rows.questions import Question, as_plain, question_given, read_question
from blora.training.rows.sources import read_table
from tests.training.toys import train_arguments, write_jsonl

URGENT = {"type": "predicate", "name": "urgent", "instructions": "Must somebody act today?"}
QUEUE = {
    "type": "choice",
    "name": "queue",
    "instructions": "Which queue?",
    "choices": [{"value": "bug"}, {"value": "billing", "description": "invoices and payments"}],
}
MOOD = {"type": "score", "name": "mood", "levels": [{"label": "calm"}, {"label": "annoyed"}, {"label": "angry"}]}


def request(text: str, *questions: dict[str, Any]) -> dict[str, Any]:
    return {"input": text, "questions": list(questions)}


ROWS = [
    request("The app is down!", URGENT | {"label": True}, QUEUE | {"label": "bug"}, MOOD | {"label": 1}),
    request("An invoice, please.", URGENT | {"label": False}, QUEUE | {"label": "billing"}),
]


def fixed(question: dict[str, Any]) -> Question:
    return question_given(question)


def test_every_question_of_a_request_is_a_row_without_an_adapter_s_own() -> None:
    read = read_examples(ROWS).examples
    assert [example.prompt for example in read] == [
        "The app is down!\n\nMust somebody act today?",
        "The app is down!\n\nWhich queue?",
        "The app is down!",
        "An invoice, please.\n\nMust somebody act today?",
        "An invoice, please.\n\nWhich queue?",
    ]
    assert read[1].choices == ("bug", "billing: invoices and payments")
    assert [example.choices[example.label] for example in read] == [
        *("true", "bug", "annoyed"),
        *("false", "billing: invoices and payments"),
    ]
    assert read[2].where == "rows[0], question 2"


@pytest.mark.parametrize(
    ("question", "labels"),
    [(URGENT, ["true", "false"]), (QUEUE, ["bug", "billing"]), (MOOD, ["annoyed"])],
)
def test_a_fixed_question_is_taken_from_the_rows_that_have_it(question: dict[str, Any], labels: list[str]) -> None:
    asked = fixed(question)
    read = read_examples(ROWS, choices=asked.choices, question=asked).examples
    assert [example.choices[example.label] for example in read] == labels
    assert read[0].prompt == "The app is down!"
    assert {example.choices for example in read} == {asked.choices}


def test_choices_in_another_order_are_the_same_question_but_levels_are_not() -> None:
    turned = QUEUE | {"choices": QUEUE["choices"][::-1], "label": "bug"}  # type: ignore[index]
    asked = fixed(QUEUE)
    [example] = read_examples([request("Help!", turned)], choices=asked.choices, question=asked).examples
    assert example.choices[example.label] == "bug"
    turned = MOOD | {"levels": MOOD["levels"][::-1], "label": "calm"}  # type: ignore[index]
    with pytest.raises(DataError, match=r"expected the score of calm, annoyed, angry, the same in all rows"):
        read_examples([request("Help!", turned)], choices=fixed(MOOD).choices, question=fixed(MOOD))


def test_a_plain_row_may_label_a_predicate_with_true_and_false() -> None:
    rows = [{"prompt": "Help!", "label": True}, {"prompt": "Later is fine.", "label": "False"}]
    asked = fixed(URGENT)
    read = read_examples(rows, choices=asked.choices, question=asked).examples
    assert [example.choices[example.label] for example in read] == ["true", "false"]


@pytest.mark.parametrize("label", ["true ", "\u200btrue", " TRUE"])
def test_a_label_names_the_value_that_looks_the_same(label: str) -> None:
    asked = fixed(URGENT)
    rows = [{"prompt": "Help!", "label": label}, {"prompt": "Later is fine.", "label": False}]
    first, _ = read_examples(rows, choices=asked.choices, question=asked).examples
    assert first.choices[first.label] == "true"
    [chosen] = read_examples([request("It crashes.", QUEUE | {"label": label.lower().replace("true", "bug")})]).examples
    assert chosen.choices[chosen.label].startswith("bug")


@pytest.mark.parametrize("blank", [None, " ", float("nan")])
def test_an_empty_cell_of_a_predicate_is_no_label(blank: object) -> None:
    asked = fixed(URGENT)
    rows = [{"prompt": "Help!", "label": blank}, {"prompt": "Later is fine.", "label": False}]
    with pytest.raises(DataError, match=r"rows\[0\]: got no label"):
        read_examples(rows, choices=asked.choices, question=asked)
    with pytest.raises(DataError, match=r"got no label in any row"):
        read_examples(rows[:1], choices=asked.choices, question=asked)


@pytest.mark.parametrize(("written", "shown"), [("1", "'1'"), ("0", "'0'"), ("yes", "'yes'")])
def test_a_plain_row_may_not_label_a_predicate_with_numbers(tmp_path: Path, written: str, shown: str) -> None:
    (tmp_path / "rows.csv").write_text(f"prompt,label\nHelp!,true\nIt burns!,{written}\n")
    asked = fixed(URGENT)
    message = f"got label {shown} of the predicate 'urgent', expected true or false"
    with pytest.raises(DataError, match=message):
        read_examples(tmp_path / "rows.csv", choices=asked.choices, question=asked)
    if written.isdecimal():  # positions of the choices, by which 1 is false
        with pytest.raises(DataError, match=f"got label {written} of the predicate"):
            read_examples([{"prompt": "It burns!", "label": int(written)}], choices=asked.choices, question=asked)
        read = read_examples([{"prompt": "It burns!", "label_index": 0}], choices=asked.choices, question=asked)
        assert read.examples[0].choices[read.examples[0].label] == "true"


def test_requests_without_the_question_are_told(caplog: pytest.LogCaptureFixture) -> None:
    rows = [request("a", URGENT | {"label": True}), request("b", URGENT | {"name": "Urgent", "label": True})]
    asked = fixed(URGENT)
    assert len(read_examples(rows, choices=asked.choices, question=asked).examples) == 1
    assert "1 of 2 requests have no question named 'urgent' and are left out" in caplog.text
    caplog.clear()
    read_examples(rows[:1], choices=asked.choices, question=asked)
    assert caplog.text == ""


def test_some_training_rows_do_without_descriptions_and_no_other_rows() -> None:
    rows = [request(f"Ticket {number}", QUEUE | {"label": "bug"}) for number in range(400)]
    offered = [row["choices"][1] for _, row in as_plain(read_table(rows), None, training=True).rows]  # type: ignore[index]
    assert 60 < offered.count("billing") < 140
    assert offered.count("billing") + offered.count("billing: invoices and payments") == 400
    assert "billing" not in [row["choices"][1] for _, row in as_plain(read_table(rows), None).rows]  # type: ignore[index]


def test_a_training_row_is_known_again_whether_or_not_its_descriptions_were_offered() -> None:
    rows = [request(f"Ticket {number}", QUEUE | {"label": "bug"}) for number in range(40)]
    trained = examples_of(as_plain(read_table(rows), None, training=True), None)
    assert len({example.choices for example in trained.examples}) == 2
    again = read_examples(rows)
    assert fingerprints(again) == fingerprints(trained)
    with pytest.raises(DataError, match="got 40 of 40 questions .* that the adapter was made with"):
        check_unseen({SEEN: {"train": fingerprints(trained)}}, again)
    with pytest.raises(DataError, match="got 40 of 40 validation questions that are also trained on"):
        check_disjoint(trained, again)


def test_the_number_of_a_level_that_is_another_levels_text_is_refused() -> None:
    stars = {"type": "score", "name": "stars", "levels": [{"label": str(level)} for level in range(1, 6)]}
    for asked in (None, fixed(stars)):
        with pytest.raises(DataError, match="got label 3 of the score 'stars', which is the number of '4' and also"):
            read_examples([request("Fine.", stars | {"label": 3})], question=asked)
    from_zero = stars | {"levels": [{"label": str(level)} for level in range(5)]}
    for row in (request("Fine.", stars | {"label": "3"}), request("Fine.", from_zero | {"label": 3})):
        [read] = read_examples([row]).examples
        assert read.choices[read.label] == "3"


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"input": "", "questions": [URGENT]}, "got input '', expected non-empty text"),
        ({"input": "Help!", "questions": []}, r"got questions \[\], expected a list"),
        (request("Help!", URGENT), "got label None of the predicate 'urgent', expected true or false"),
        (request("Help!", MOOD | {"label": 3}), "expected a level or its number from 0"),
        (request("Help!", QUEUE | {"label": 0}), "expected one of its values"),
        (request("Help!", {"type": "box"}), "got question type 'box', expected predicate, choice or score"),
        (request("Help!", QUEUE | {"choices": [{"value": "one"}]}), "expected a list of two or more"),
        (request("Help!", QUEUE | {"choices": [{"value": "a"}, {"value": "a"}]}), "got 'a' twice in choices"),
        (request("Help!", QUEUE | {"choices": ["a", "b"]}), "got 'a' in choices, expected a value of text"),
        (request("Help!", MOOD | {"name": 3}), "got name 3"),
        ({"input": "Help!", "questions": ["urgent"]}, "got the question 'urgent', expected an object"),
    ],
)
def test_a_malformed_request_is_refused_with_its_place(row: dict[str, Any], expected: str) -> None:
    with pytest.raises(DataError, match=rf"rows\[1\]: {expected}|rows\[1\]: .*{expected}"):
        read_examples([ROWS[0], row])


def test_half_a_surrogate_pair_in_a_request_is_refused_with_its_place() -> None:
    with pytest.raises(
        DataError, match=r"^rows\[1\], question 0: got half of a surrogate pair, '\\ud800', at character 2"
    ):
        read_examples([ROWS[0], request("a \ud800 b", MOOD | {"label": 1})])


@pytest.mark.parametrize(
    ("text", "expected"), [(None, "cannot be read"), ("{", "got no JSON"), ("[]", "expected an object")]
)
def test_a_question_file_that_holds_none_is_refused(tmp_path: Path, text: str | None, expected: str) -> None:
    file = tmp_path / "question.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(DataError, match=expected):
        read_question(file)


def test_an_adapter_is_trained_for_one_question_and_takes_it_from_requests(tmp_path: Path, base_folder: Path) -> None:
    rows = [
        request(f"{text} {number}", URGENT | {"label": text == "Now"}, QUEUE | {"label": "bug"})
        for number in range(12)
        for text in ("Now", "Later")
    ]
    data, question = write_jsonl(tmp_path / "rows.jsonl", rows), tmp_path / "urgent.json"
    question.write_text(json.dumps(URGENT))
    output = tmp_path / "urgent"
    arguments = train_arguments(base_folder, data, output, "--question", str(question), "--head", "none")
    assert train.main(arguments) == 0
    config = AdapterConfig.from_json((output / "bayesian_config.json").read_bytes())
    assert Question.of(config) == fixed(URGENT)
    assert len(examples_for(config, str(data), split="test").examples) == len(rows)
    assert "| question | urgent, a predicate: Must somebody act today? |" in (output / "README.md").read_text()


def test_a_question_and_choices_of_one_s_own_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="leave --choices out"):
        blora.train(ROWS, output=tmp_path / "adapter", question=URGENT, choices=["a", "b"])


def test_questions_about_one_text_stay_on_one_side_of_the_split() -> None:
    rows = [request(f"Ticket {n}", URGENT | {"label": n % 2 == 0}, QUEUE | {"label": "bug"}) for n in range(40)]
    train, validation = split_examples(read_examples(rows), None, None, seed=0)
    assert len(validation.examples) == 8
    assert not {example.about for example in train.examples} & {example.about for example in validation.examples}


def test_a_text_that_was_trained_on_is_not_unseen_with_another_question() -> None:
    trained = read_examples([request("Help!", URGENT | {"label": True})])
    asked = read_examples([request("Help!", MOOD | {"label": 0}), request("Later.", MOOD | {"label": 0})])
    record = {SEEN: {"train": fingerprints(trained)}}
    with pytest.raises(DataError, match=r"got 1 of 2 questions .* rows\[0\], question 0 \(train\)"):
        check_unseen(record, asked)
    with pytest.raises(DataError, match="that are also trained on"):
        check_disjoint(trained, asked)


def test_one_question_for_each_text_is_left_for_a_proof() -> None:
    rows = [request(f"Ticket {n}", URGENT | {"label": True}, QUEUE | {"label": "bug"}) for n in range(200)]
    examples = read_examples(rows)
    kept = one_for_each_text(examples, seed=3)
    assert [example.about for example in kept.examples] == [f"Ticket {n}" for n in range(200)]
    assert 60 < sum(example.choices == ("true", "false") for example in kept.examples) < 140
    assert one_for_each_text(examples, seed=3) == kept != one_for_each_text(examples, seed=4)
    sets = (["x", "y"], ["bug", "billing"], ["calm", "angry"])
    plain = [{"prompt": f"Ticket {n}", "label": 0, "choices": choices} for n in range(100) for choices in sets]
    chats = [row | {"prompt": None, "messages": [{"role": "user", "content": row["prompt"]}]} for row in plain]
    for rows in (plain, chats):
        assert len(one_for_each_text(read_examples(rows), seed=0).examples) == 100


def test_of_rows_in_random_order_the_first_ones_that_are_drawn_are_a_fair_sample_of_the_texts() -> None:
    """A text with many rows has one among the first rows more often than a text with one row."""
    sizes = {f"Ticket {n}": 9 if n % 2 else 1 for n in range(1000)}
    rows = [
        {"prompt": text, "choices": [f"x{k}", "y"], "label": 0} for text, size in sizes.items() for k in range(size)
    ]
    examples = read_examples([rows[i] for i in torch.randperm(len(rows), generator=generator_of(0)).tolist()])
    kept = one_for_each_text(examples, seed=0, limit=300).examples
    assert len({example.text for example in kept}) == 300
    assert [*kept] == sorted(kept, key=examples.examples.index)
    with_many = sum(sizes[example.prompt] == 9 for example in kept)
    assert 115 < with_many < 185  # four standard deviations around 150
    of_first_rows = one_for_each_text(replace(examples, examples=examples.examples[:600]), seed=0).examples
    assert sum(sizes[example.prompt] == 9 for example in of_first_rows) > 0.8 * len(of_first_rows)
    with pytest.raises(ConfigError, match="limit 0"):
        one_for_each_text(examples, seed=0, limit=0)
