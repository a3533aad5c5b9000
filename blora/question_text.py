"""The text of a question that an adapter has no fixed choices for, the same in training and in service."""

__all__ = ["choice_text", "question_text"]


def question_text(text: str, instructions: str) -> str:
    r"""Return the prompt of a question about a text.

    >>> question_text("My card was charged twice.", "Is the customer angry?")
    'My card was charged twice.\n\nIs the customer angry?'
    """
    return f"{text}\n\n{instructions}" if instructions else text


def choice_text(value: str, description: str | None) -> str:
    """Return a choice as it is offered.

    >>> choice_text("billing", "invoices and payments")
    'billing: invoices and payments'
    """
    return f"{value}: {description}" if description else value
