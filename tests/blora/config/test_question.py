"""The question of an adapter: its choices suit its type, and it survives the file."""

import json

import pytest

from blora.config import AdapterConfig, PromptConfig, QuestionConfig
from blora.errors import ConfigError
from tests.blora.config.test_config import make

CHOICES = ("calm", "annoyed", "angry")
MOOD = QuestionConfig(
    name="mood", type="score", instructions="How does the customer feel?", descriptions={"calm": "ok"}
)


def asking(question: QuestionConfig, choices: tuple[str, ...] | None) -> AdapterConfig:
    return make(prompt=PromptConfig(choices=choices), question=question)


def test_a_question_survives_the_file() -> None:
    config = asking(MOOD, CHOICES)
    assert AdapterConfig.from_json(json.dumps(config.to_dict())) == config


@pytest.mark.parametrize(
    ("question", "choices", "expected"),
    [
        (MOOD, None, "fixed choices"),
        (MOOD, ("low", "high"), "descriptions of"),
        (QuestionConfig(name="urgent", type="predicate"), ("yes", "no"), "true"),
    ],
)
def test_choices_that_do_not_suit_a_question_are_refused(
    question: QuestionConfig, choices: tuple[str, ...] | None, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        asking(question, choices)


@pytest.mark.parametrize("field", [{"name": " "}, {"name": "mood", "type": "number"}])
def test_a_question_without_a_name_or_of_no_known_type_is_refused(field: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        QuestionConfig(**field)  # type: ignore[arg-type]
