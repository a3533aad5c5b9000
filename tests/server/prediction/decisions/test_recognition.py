"""Recognition of the adapters' own questions, and the adapters that a model has."""

import pytest

from blora.config import QuestionConfig
from blora.config.question import QuestionType
from blora.server.adapters.registry import Registry
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import DigestMismatchError, UnknownAdapterError
from blora.server.prediction.decisions.question import Option, Question, predicate_options
from blora.server.prediction.decisions.recognition import family, recognise, unknown_question
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
