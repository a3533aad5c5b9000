"""Recognition of the adapters' own questions, and the adapters that a model has."""

from dataclasses import replace

import pytest

from blora.config import QuestionConfig
from blora.config.question import QuestionType
from blora.server.adapters.registry import Registry
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import DigestMismatchError, InvalidRequestError, UnknownAdapterError
from blora.server.prediction.decisions.question import Option, Question, predicate_options
from blora.server.prediction.decisions.recognition import family, open_member, recognise, unknown_question
from tests.server.decision_models import LEVELS, MOOD, QUEUE, URGENT, digest
from tests.server.decision_models import family as loaded
from tests.server.fakes import CHOICES, handle

REGISTRY = Registry(loaded())
TRIAGE = family(REGISTRY, "triage", None)


def question(
    kind: QuestionType, *values: str | bool, name: str | None = None, instructions: str = "Something else?"
) -> Question:
    options = predicate_options() if kind == "predicate" else tuple(Option(value) for value in values)
    return Question(path="questions[0]", type=kind, instructions=instructions, options=options, name=name)


def found(asked: Question) -> tuple[str, tuple[int, ...]] | None:
    match = recognise(asked, TRIAGE.members)
    return (match.handle.name, match.places) if match is not None else None


@pytest.mark.parametrize(
    ("asked", "name", "places"),
    [
        (question("choice", *CHOICES, name="queue"), "triage", (0, 1, 2)),
        (question("choice", "account", "billing", "technical", name="queue"), "triage", (2, 0, 1)),
        (question("choice", " account", "billing\n", "technical", name="queue"), "triage", (2, 0, 1)),
        (question("choice", *CHOICES, instructions=" Which  team\nshould answer? "), "triage", (0, 1, 2)),
        (question("choice", "bill\u200bing", "technical", "account", name="queue"), "triage", (0, 1, 2)),
        (question("choice", *CHOICES, instructions="Which team should\u200b answer?"), "triage", (0, 1, 2)),
        (question("choice", *CHOICES, instructions=""), "triage", (0, 1, 2)),
        (question("predicate", name="urgent"), "triage.urgent", (0, 1)),
        (question("predicate", instructions=URGENT.instructions), "triage.urgent", (0, 1)),
        (question("score", *LEVELS, name="mood"), "triage.mood", (0, 1, 2)),
        (question("score", *LEVELS, instructions=MOOD.instructions), "triage.mood", (0, 1, 2)),
        (question("score", "calm", "annoyed", "swears", name="mood"), "triage.mood", (0, 1, 2)),
        (question("score", "calm", "annoyed", "angry: swears", name="mood"), "triage.mood", (0, 1, 2)),
    ],
)
def test_a_models_own_question_is_recognised(asked: Question, name: str, places: tuple[int, ...]) -> None:
    assert found(asked) == (name, places)


@pytest.mark.parametrize(
    "asked",
    [
        question("choice", *CHOICES),  # neither its name nor its instructions
        question("choice", *CHOICES, name="urgent"),
        question("choice", "billing", "technical", name="queue"),
        question("choice", *CHOICES, "other", name="queue"),
        question("choice", "billing", "technical", "Account", name="queue"),
        question("choice", True, False, name="urgent"),  # a choice, not a predicate
        question("choice", "true", "false", name="urgent"),
        question("score", *CHOICES, name="queue"),
        question("score", *reversed(LEVELS), name="mood"),
        question("score", "calm", "angry", name="mood"),
        question("choice", *LEVELS, name="mood"),
        question("predicate", name="queue"),
        question("predicate", instructions=""),  # its choices say nothing
        question("choice", "a", "b", name="x"),  # of `triages`, which is no adapter of `triage`
    ],
)
def test_another_question_is_not(asked: Question) -> None:
    assert found(asked) is None


def test_the_text_true_is_not_the_value_true() -> None:
    words = handle("words", digest(1), choices=("true", "false"))
    assert recognise(question("choice", "false", "true"), [words]) is not None
    assert recognise(question("choice", False, True), [words]) is None
    assert recognise(question("predicate"), [words]) is None


def test_a_name_counts_before_instructions_and_instructions_before_choices() -> None:
    plain = handle("m.a", digest(1), choices=("x", "y"))
    by_text = handle("m.b", digest(2), choices=("x", "y"), question=QuestionConfig(name="b", instructions="Which?"))
    by_name = handle("m.c", digest(3), choices=("x", "y"), question=QuestionConfig(name="c", instructions="Else?"))
    asked = question("choice", "x", "y", name="c", instructions="Which?")
    for members, expected in (((plain, by_text, by_name), by_name), ((plain, by_text), by_text), ((plain,), plain)):
        match = recognise(asked, members)
        assert match is not None
        assert match.handle is expected


def test_of_two_adapters_of_one_name_that_with_the_questions_words_answers() -> None:
    def version(name: str, number: int) -> AdapterHandle:
        own = QuestionConfig(name="c", instructions=f"{name} words?")
        return handle(f"m.{name}", digest(number), choices=("x", "y"), question=own)

    members = version("first", 1), version("second", 2)
    for member, words in zip(members, ("first", "second"), strict=True):
        match = recognise(question("choice", "x", "y", name="c", instructions=f"{words} words?"), members)
        assert match is not None
        assert (match.handle, match.other_wording) == (member, None)


def test_choices_that_two_different_questions_have_say_nothing() -> None:
    def mood(of: str, number: int) -> AdapterHandle:
        config = QuestionConfig(name=of, type="score", instructions=f"How angry is the {of}?")
        return handle(f"m.{of}{number}", digest(number), choices=LEVELS, question=config)

    agent, customer, customer_again = mood("agent", 1), mood("customer", 2), mood("customer", 3)
    asked = question("score", *LEVELS, name="mood", instructions="")
    assert recognise(asked, [agent, customer]) is None
    for members in ([customer], [customer, customer_again]):
        match = recognise(asked, members)
        assert match is not None
        assert match.handle is customer
    named = recognise(question("score", *LEVELS, name="customer", instructions=""), [agent, customer])
    assert named is not None
    assert named.handle is customer


@pytest.mark.parametrize(
    ("instructions", "description", "unchecked"),
    [("", "", False), ("Which is it NOT?", "", True), ("", "all but x", True)],
)
def test_words_that_the_adapter_has_nothing_to_compare_with_are_unchecked(
    instructions: str, description: str, unchecked: bool
) -> None:
    silent = handle("m.a", digest(1), choices=("x", "y"))
    options = Option("x", description), Option("y")
    asked = Question(path="questions[0]", type="choice", instructions=instructions, options=options)
    match = recognise(asked, [silent])
    assert match is not None
    assert (match.other_wording, match.unchecked) == (None, unchecked)


def test_choices_of_a_question_with_other_instructions_say_nothing_either() -> None:
    asks = handle("m.a", digest(1), choices=("x", "y"), question=QuestionConfig(name="a", instructions="Q A?"))
    silent = handle("m.b", digest(2), choices=("x", "y"), question=QuestionConfig(name="b"))
    other = handle("m.c", digest(3), choices=("x", "z"), question=QuestionConfig(name="c", instructions="Q C?"))
    asked = question("choice", "x", "y", name="zzz", instructions="Is it raining?")
    assert recognise(asked, [asks, silent]) is None
    for members in ([silent], [silent, other]):
        match = recognise(asked, members)
        assert match is not None
        assert match.handle is silent


@pytest.mark.parametrize(
    ("asked", "other_wording"),
    [
        (question("predicate", name="urgent", instructions=URGENT.instructions), None),
        (question("predicate", name="urgent", instructions=f" {URGENT.instructions}\n"), None),
        (question("predicate", name="urgent", instructions=""), None),
        (question("predicate", name="urgent", instructions="Can it wait?"), "instructions"),
        (question("choice", *CHOICES, name="queue"), "instructions"),
        (question("score", *LEVELS, name="mood"), "instructions"),
        (question("choice", *CHOICES, instructions=""), None),
    ],
)
def test_instructions_in_other_words_are_noticed(asked: Question, other_wording: str | None) -> None:
    match = recognise(asked, TRIAGE.members)
    assert match is not None
    assert match.other_wording == other_wording


@pytest.mark.parametrize(
    ("instructions", "criteria", "own", "other_wording"),
    [
        ("Is it so?", {"true": "yes"}, {}, "descriptions"),
        ("Is it so?", {"true": " yes "}, {"true": "yes"}, None),
        ("Is it so?", {"true": "yes", "false": "no"}, {"true": "yes"}, "descriptions"),
        ("Was it so?", {"true": "yes"}, {"true": "yes"}, "instructions"),
        ("", {"true": "yes"}, {"true": "yes"}, None),
        ("Is it so?", {"true": "yes"}, {"true": "no"}, "refused"),
        ("Is it so?", {"false": "yes"}, {"true": "yes", "false": "no"}, "refused"),
        ("Was it so?", {"true": "yes"}, {}, "refused"),
        ("", {"true": "yes"}, {}, "refused"),
    ],
)
def test_a_predicates_criteria_are_the_adapters_or_need_its_instructions(
    instructions: str, criteria: dict[str, str], own: dict[str, str], other_wording: str | None
) -> None:
    config = QuestionConfig(name="it", type="predicate", instructions="Is it so?", descriptions=own)
    asked = replace(question("predicate", name="it", instructions=instructions), options=predicate_options(**criteria))
    match = recognise(asked, [handle("m", digest(1), choices=("true", "false"), question=config)])
    assert (match.other_wording if match is not None else "refused") == other_wording


@pytest.mark.parametrize(
    ("meaning", "other_wording"), [("", None), ("money", None), ("anything but money", "descriptions")]
)
def test_a_choice_described_in_other_words_is_noticed(meaning: str, other_wording: str | None) -> None:
    asked = question("choice", *reversed(CHOICES), name="queue", instructions=QUEUE.instructions)
    described = tuple(Option(option.value, meaning if option.value == "billing" else "") for option in asked.options)
    match = recognise(replace(asked, options=described), TRIAGE.members)
    assert match is not None
    assert match.other_wording == other_wording


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        (["m.open"], "m.open"),
        (["m", "m.open", "m.other"], "m"),
        (["m.fixed", "m.open"], "m.open"),
        (["m.open", "m.other"], None),
        (["m.fixed"], None),
    ],
)
def test_an_adapter_without_fixed_choices_answers_the_rest(members: list[str], expected: str | None) -> None:
    handles = [
        handle(name, digest(k), choices=("a", "b") if name == "m.fixed" else None) for k, name in enumerate(members)
    ]
    asked, model = question("predicate"), family(Registry(handles), "m", None)
    if expected is not None:
        assert open_member(asked, model).name == expected
        return
    with pytest.raises(InvalidRequestError) as info:
        open_member(asked, model)
    assert (info.value.code, info.value.param) == ("unknown_question", "questions[0]")
    assert ("'m.open', 'm.other'" in info.value.message) == ("m.other" in members)


def test_a_models_adapters_are_its_own_and_those_below_its_name() -> None:
    assert TRIAGE.own is REGISTRY.get("triage")
    assert [member.name for member in TRIAGE.members] == ["triage", "triage.mood", "triage.urgent"]
    alone = family(REGISTRY, "triage.mood", None)
    assert [member.name for member in alone.members] == ["triage.mood"]


@pytest.mark.parametrize(
    ("key", "seen"),
    [
        ({"triage"}, ["triage", "triage.mood", "triage.urgent"]),
        ({"triage.mood"}, ["triage.mood"]),
        ({"triage.mood", "open"}, ["triage.mood"]),
    ],
)
def test_a_key_opens_what_lies_below_a_name_that_it_opens(key: set[str], seen: list[str]) -> None:
    assert [member.name for member in family(REGISTRY, "triage", key).members] == seen


def test_a_key_for_other_adapters_opens_none() -> None:
    for key in ({"open"}, {"triages"}, {"tri"}):
        with pytest.raises(UnknownAdapterError):
            family(REGISTRY, "triage", key)


def test_a_digest_pins_the_model() -> None:
    assert family(REGISTRY, f"triage@{digest(1)}", None).name == "triage"
    with pytest.raises(DigestMismatchError):
        family(REGISTRY, f"triage@{digest(2)}", None)
    with pytest.raises(UnknownAdapterError):
        family(REGISTRY, "nobody", None)


def test_the_error_lists_what_the_model_answers() -> None:
    error = unknown_question(question("predicate"), TRIAGE)
    assert (error.status, error.code, error.param) == (422, "unknown_question", "questions[0]")
    for known in (QUEUE.name, "'billing', 'technical', 'account'", "'urgent' (predicate)", "score of 'calm'"):
        assert known in error.message
    many = handle("many", digest(1), choices=tuple(map(str, range(255))))
    error = unknown_question(question("predicate"), family(Registry([many]), "many", None))
    assert "'7' and 247 more" in error.message
    assert "'8'" not in error.message
