"""The choices that a question is answered with, its own or else the adapter's, and lists of them in messages."""

from collections.abc import Sequence

from blora.config import MOST_CHOICES
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import InvalidRequestError
from blora.server.schemas.requests import PredictRequest

__all__ = ["listed", "offered_choices"]

# Most choices, or questions of a model, that an error message lists.
_MOST_LISTED = 8


def offered_choices(question: PredictRequest, handle: AdapterHandle) -> Sequence[str]:
    """Return the choices of a question to an adapter.

    Raises:
        InvalidRequestError: if neither the question nor the adapter has any.
    """
    choices = question.choices or handle.config.prompt.choices
    if not choices:
        raise InvalidRequestError(
            f"The request has no choices, and adapter {handle.name!r} has no fixed ones: list 2 to {MOST_CHOICES} "
            "possible answers.",
            code="missing",
            param="choices",
        )
    return choices


def listed(names: Sequence[str]) -> str:
    """Return names as an error message lists them, of many only the first ones."""
    more = len(names) - _MOST_LISTED
    return ", ".join(names[:_MOST_LISTED]) + (f" and {more} more" if more > 0 else "") if names else "none"
