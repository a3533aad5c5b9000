"""A typed question about a text, whatever the dialect in which it came."""

from dataclasses import dataclass

from blora.config.question import QuestionType

__all__ = ["Option", "Question", "predicate_options", "spelled"]


@dataclass(frozen=True, slots=True)
class Option:
    """A possible answer, with a description of its meaning; empty without one."""

    value: str | bool
    description: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One question of a request.

    Attributes:
        path: its place in the request, for error messages.
        type: predicate, choice or score.
        instructions: what is asked of the text; empty for nothing beyond the options.
        options: the possible answers: true and false for a predicate, levels from the lowest for a score.
        name: its name in the request; None without one.
    """

    path: str
    type: QuestionType
    instructions: str
    options: tuple[Option, ...]
    name: str | None = None


def predicate_options(true: str = "", false: str = "") -> tuple[Option, ...]:
    """Return the options of a predicate, with descriptions of both."""
    return Option(True, true), Option(False, false)


def spelled(value: str | bool) -> str:
    """Return the text of a value, without white space at its ends.

    >>> spelled(True), spelled(" true ")
    ('true', 'true')
    """
    return ("true" if value else "false") if isinstance(value, bool) else value.strip()
