"""The text of a question that a request brings: the model reads this form in training and in service."""

from collections.abc import Iterable

__all__ = ["choice_text", "question_text", "wording"]


def question_text(text: str, instructions: str) -> str:
    r"""Return the prompt for a question about a text: the text, a blank line, and the instructions.

    >>> question_text("I was charged twice.", "Is it urgent?")
    'I was charged twice.\n\nIs it urgent?'
    """
    return f"{text}\n\n{instructions}" if instructions else text


def choice_text(value: str, description: str = "") -> str:
    """Return the text by which a choice or a level is offered: its value, and its description if it has one.

    >>> choice_text("billing", "payments and refunds"), choice_text("other")
    ('billing: payments and refunds', 'other')
    """
    return f"{value}: {description}" if description else value


def wording(prompt: str | None, turns: Iterable[str]) -> str:
    """Return a question without its choices; equal for a prompt and for a chat of that one turn.

    Args:
        prompt: the text of the question, None if it is a chat.
        turns: the contents of the chat's turns.

    >>> wording("Is it urgent?", []) == wording(None, ["Is it urgent?"])
    True
    """
    return " ".join(turns) if prompt is None else prompt
