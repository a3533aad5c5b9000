"""Refusal of questions that an adapter has seen, recognised by fingerprints."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import read_config
from blora.errors import AdapterError, ConfigError, DataError
from blora.questions.fingerprints import DIGITS, parts
from blora.training.rows.examples import ExampleSet, examples_for, one_for_each_text, read_examples
from blora.training.rows.overlap import check_disjoint, check_distinct, check_unseen, fingerprints, seen_among
from tests.training.toys import row, write_jsonl

NAMES = ("one", "two", "three", "four", "five", "six", "seven")


def examples(folder: Path, *rows: dict[str, Any], name: str = "rows") -> ExampleSet:
    return read_examples(str(write_jsonl(folder / f"{name}.jsonl", rows)))


def asked(*names: str, **changes: Any) -> list[dict[str, Any]]:
    return [row(question=f"Question {name}?", **changes) for name in names]


def test_a_record_is_small_and_tells_neither_text_nor_order(tmp_path: Path) -> None:
    one = fingerprints(examples(tmp_path, *asked(*NAMES)))
    assert one == fingerprints(examples(tmp_path, *reversed(asked(*NAMES))))
    assert len(one) == DIGITS * len(NAMES)
    assert set(one) <= set("0123456789abcdef")
    assert parts(one) == sorted(set(parts(one)))


SAME: dict[str, dict[str, Any]] = {
    "as it was": {},
    "another label": {"label": 0},
    "other white space": {"question": " Which  is\nwarm? "},
    "a prompt": {"question": None, "prompt": "Which is warm?"},
    "choices in another order": {"choices": ["fire", "ice"], "label": 0},
    "other choices": {"choices": ["ice", "tea"]},
    "one choice more": {"choices": ["ice", "fire", "tea"]},
    "a chat": {"question": None, "messages": [{"role": "user", "content": "Which is  warm?"}]},
}
SPELLINGS = (
    "Caf\u00e9 soda?",
    "Cafe\u0301 soda?",
    "Caf\u00e9 so\u00adda?",
    "Cafe\u200b\u0301 soda?",
    "Caf\u00e9 \u200b soda? \ufeff",
)
OTHER: dict[str, dict[str, Any]] = {
    "another question": {"question": "Which is cold?"},
    "a longer chat": {"question": None, "messages": [{"role": "user", "content": "Which is warm?"}] * 2},
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_text_has_the_same_fingerprint(tmp_path: Path, name: str) -> None:
    assert fingerprints(examples(tmp_path, row(**SAME[name]))) == fingerprints(examples(tmp_path, row()))


@pytest.mark.parametrize("name", OTHER)
def test_another_text_has_another(tmp_path: Path, name: str) -> None:
    assert fingerprints(examples(tmp_path, row(**OTHER[name]))) != fingerprints(examples(tmp_path, row()))


@pytest.mark.parametrize("question", SPELLINGS)
def test_spellings_that_look_the_same_are_the_same_text(tmp_path: Path, question: str) -> None:
    trained, same = (examples(tmp_path, row(question=text)) for text in (SPELLINGS[0], question))
    assert fingerprints(trained) == fingerprints(same)
    assert (
        len(one_for_each_text(read_examples([row(question=SPELLINGS[0]), row(question=question)]), seed=0).examples)
        == 1
    )
    with pytest.raises(DataError, match="got the same question twice"):
        check_distinct(read_examples([row(question=SPELLINGS[0]), row(question=question)]))


def test_chats_differ_by_role_and_by_turn(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    chats = [turns, turns[:1], turns[::-1], [turns[0], turns[1] | {"role": "user"}]]
    found = [examples(tmp_path, row(question=None, messages=chat)) for chat in chats]
    assert len({one.examples[0].identity for one in found}) == len(chats)
    assert len({fingerprints(one) for one in found}) == len(chats) - 1  # the text is that of all turns, without roles


def record(train: ExampleSet, validation: ExampleSet) -> dict[str, Any]:
    """Return the training record as it is read back from the adapter's config."""
    made = {
        "command": "blora train",
        "train": {"source": train.source, "digest": train.digest},
        "seen": {"train": fingerprints(train), "validation": fingerprints(validation)},
    }
    read: dict[str, Any] = json.loads(json.dumps(made))
    return read


def test_questions_that_were_seen_are_named_with_their_place_and_use(tmp_path: Path) -> None:
    train = examples(tmp_path, *asked("one", "two"), name="train")
    validation = examples(tmp_path, *asked("three"), name="validation")
    made = record(train, validation)
    check_unseen(made, examples(tmp_path, *asked("four", "five"), name="new"))
    mixed = examples(tmp_path, *asked("four", "two", "five", "three"), name="mixed")
    with pytest.raises(DataError, match="got 2 of 4 questions in mixed.jsonl that the adapter was made with") as info:
        check_unseen(made, mixed)
    file = tmp_path / "mixed.jsonl"
    assert f"expected none: {file}:2 (train), {file}:4 (validation); remove them" in str(info.value)


def test_only_the_first_of_many_are_named(tmp_path: Path) -> None:
    train = examples(tmp_path, *asked(*NAMES), name="train")
    again = examples(tmp_path, *asked(*NAMES, "eight"), name="again")
    validation = examples(tmp_path, *asked("nine"), name="validation")
    with pytest.raises(DataError, match=r"got 7 of 8 .*again.jsonl:5 \(train\) and 2 more; remove"):
        check_unseen(record(train, validation), again)


TURN = {"role": "user", "content": "Is tea warm?"}
ASKED = {"type": "choice", "name": "q", "choices": [{"value": "ice"}, {"value": "fire"}], "label": "ice"}
FORMS: dict[str, dict[str, Any]] = {
    "a prompt": {"prompt": "Is tea warm?", "choices": ["yes", "no"], "label": 0},
    "a prompt with other choices": {"prompt": "Is  tea warm?", "choices": ["hot", "cold", "mild"], "label": 2},
    "a question": {"question": "Is tea warm?", "choices": ["yes", "no"], "label": 1},
    "a chat of one turn": {"messages": [TURN], "choices": ["a", "b"], "label": 0},
    "a request": {"input": "Is tea warm?\n", "questions": [ASKED]},
    "a request with instructions": {"input": "Is tea warm?", "questions": [ASKED | {"instructions": "Answer."}]},
}


@pytest.mark.parametrize("trained", FORMS)
@pytest.mark.parametrize("given", FORMS)
def test_a_text_is_recognised_in_every_form(trained: str, given: str) -> None:
    made = {"seen": {"train": fingerprints(read_examples([FORMS[trained]]))}}
    with pytest.raises(DataError, match="got 1 of 1 questions in rows that the adapter was made with"):
        check_unseen(made, read_examples([FORMS[given]]))


def test_a_request_written_out_as_a_prompt_is_recognised() -> None:
    request, prompt = FORMS["a request with instructions"], {"prompt": "Is tea warm?\n\nAnswer."}
    written = read_examples([prompt | {"choices": ["a", "b"], "label": 0}])
    asked = read_examples([request])
    for one, other in ((asked, written), (written, asked)):
        with pytest.raises(DataError, match="that the adapter was made with"):
            check_unseen({"seen": {"train": fingerprints(one)}}, other)
    assert len(fingerprints(asked)) == 2 * DIGITS


def test_the_demo_recognises_its_own_rows_and_no_others() -> None:
    demo = Path("examples/triage")
    config = read_config(demo / "adapter")
    for name, n_seen in (("train", 4506), ("validation", 468), ("proof", 0)):
        assert len(seen_among(examples_for(config, demo / f"{name}.jsonl", split=""), config.training)) == n_seen


def test_without_fingerprints_the_digest_of_the_whole_data_decides(tmp_path: Path) -> None:
    train = examples(tmp_path, *asked(*NAMES))
    bare = record(train, train)
    del bare["seen"]
    with pytest.raises(ConfigError, match="got rows.jsonl, which is the adapter's train data"):
        check_unseen(bare, train)
    check_unseen(bare, dataclasses.replace(train, digest="sha256:other"))


@pytest.mark.parametrize("seen", ["abc", {"train": 3}, {"train": "abc"}, {"train": "x" * DIGITS}, None, []])
def test_a_record_that_is_none_is_refused(tmp_path: Path, seen: Any) -> None:
    with pytest.raises(AdapterError, match="whose 'seen' is not a list of fingerprints, expected 12 hex digits a row"):
        check_unseen({"seen": seen}, examples(tmp_path, row()))


def test_a_question_that_comes_twice_is_refused_with_both_places(tmp_path: Path) -> None:
    check_distinct(examples(tmp_path, *asked(*NAMES)))
    file = tmp_path / "rows.jsonl"
    twice = examples(tmp_path, *asked("one", "two", "one"), *asked("two", label=0))
    with pytest.raises(DataError, match="got the same question twice in rows.jsonl, expected each once") as info:
        check_distinct(twice)
    assert f"{file}:1 and {file}:3; {file}:2 and {file}:4. Remove" in str(info.value)
    with pytest.raises(DataError, match=r"rows.jsonl:5 and .*rows.jsonl:12; and 2 more\. Remove"):
        check_distinct(examples(tmp_path, *asked(*NAMES, *NAMES)))


def test_validation_questions_that_are_trained_on_are_refused_with_both_places(tmp_path: Path) -> None:
    train = examples(tmp_path, *asked(*NAMES), name="train")
    check_disjoint(train, examples(tmp_path, *asked("eight", "nine"), name="other"))
    mixed = examples(tmp_path, *asked("eight", "two"), *asked("six", label=0), name="mixed")
    with pytest.raises(DataError, match="got 2 of 3 validation questions that are also trained on") as info:
        check_disjoint(train, mixed)
    places = [tmp_path / f"{name}.jsonl" for name in ("mixed", "train")]
    assert f"none: {places[0]}:2 and {places[1]}:2; {places[0]}:3 and {places[1]}:6. Remove" in str(info.value)
    with pytest.raises(DataError, match=r"train.jsonl:5 and .*train.jsonl:5; and 2 more\. Remove"):
        check_disjoint(train, train)
    check_disjoint(train, examples(tmp_path, *asked("three", choices=["tea", "ice"]), name="choices"))


def test_a_text_that_a_request_is_about_is_not_also_a_prompt_of_the_other_part(tmp_path: Path) -> None:
    plain = examples(tmp_path, *asked("one", "two"), name="plain")
    first, second = plain.examples
    request = dataclasses.replace(plain, examples=(dataclasses.replace(second, prompt="?", about=first.prompt),))
    for train, validation in ((plain, request), (request, plain)):
        with pytest.raises(DataError, match=r"got 1 of \d validation questions that are also trained on"):
            check_disjoint(train, validation)
    check_disjoint(request, dataclasses.replace(plain, examples=(second,)))


CHOICES = {"choices": [{"value": "yes"}, {"value": "no"}], "label": "yes"}
BARE = {"input": "Is tea warm?", "questions": [ASKED | CHOICES]}
SAME_QUESTION: dict[str, dict[str, Any]] = {
    "a prompt": FORMS["a prompt"],
    "a question": FORMS["a question"],
    "a chat of one turn": FORMS["a chat of one turn"] | {"choices": ["no", "yes"]},
    "a request": BARE,
}


@pytest.mark.parametrize("trained", SAME_QUESTION)
@pytest.mark.parametrize("given", SAME_QUESTION)
def test_a_question_that_is_trained_on_is_refused_in_every_form(trained: str, given: str) -> None:
    train, validation = (read_examples([SAME_QUESTION[form]]) for form in (trained, given))
    with pytest.raises(DataError, match="got 1 of 1 validation questions that are also trained on"):
        check_disjoint(train, validation)


def test_a_request_that_is_trained_on_is_refused_as_a_prompt_with_its_choices_alone() -> None:
    train = read_examples([BARE | {"questions": [ASKED | CHOICES | {"instructions": "Answer."}]}])
    written = {"prompt": "Is tea warm?\n\nAnswer.", "choices": ["yes", "no"], "label": 0}
    with pytest.raises(DataError, match="that are also trained on"):
        check_disjoint(train, read_examples([written]))
    check_disjoint(train, read_examples([written | {"choices": ["hot", "cold"]}]))
