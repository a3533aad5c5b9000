"""The setting that says which question an adapter with fixed choices answers, in the terms of `/v1/decisions`."""

from dataclasses import dataclass, field
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict

from blora.config.checks import require

__all__ = ["PREDICATE_CHOICES", "QuestionConfig", "QuestionType"]

QuestionType = Literal["predicate", "choice", "score"]
# The choices of a predicate, which a language model and a head read as words.
PREDICATE_CHOICES = ("true", "false")


@dataclass(frozen=True, slots=True, kw_only=True)
class QuestionConfig:
    """The question that an adapter with fixed choices answers.

    Attributes:
        name: its name in requests, different from those of the model's other questions.
        type: `predicate`, true or false; `choice`, one of several texts; or `score`, one of several ordered levels,
            the lowest first.
        instructions: what is asked of the text.
        descriptions: what some of the choices mean, by choice.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    name: str
    type: QuestionType = "choice"
    instructions: str = ""
    descriptions: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        require(bool(self.name.strip()), f"a question named {self.name!r}", "a name with a letter in it")
        require(self.type in get_args(QuestionType), f"question type {self.type!r}", "predicate, choice or score")

    def check(self, choices: tuple[str, ...] | None) -> None:
        """Raise an error if these are not the choices of such a question.

        Raises:
            ConfigError: if there are none, if a predicate's are not true and false, or if a description belongs to
                no choice.
        """
        require(choices is not None, f"the question {self.name!r} without fixed choices", "fixed choices with it")
        require(
            self.type != "predicate" or choices == PREDICATE_CHOICES,
            f"choices {choices} of the predicate {self.name!r}",
            f"{PREDICATE_CHOICES}",
        )
        unknown = sorted(set(self.descriptions) - set(choices or ()))
        require(not unknown, f"a description of {', '.join(unknown)}", f"descriptions of {choices} only")
