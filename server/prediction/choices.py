"""The choices that a question is answered with: its own, or else the adapter's."""

from collections.abc import Sequence

from blora.config import MOST_CHOICES
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import InvalidRequestError
from blora.server.schemas.requests import PredictRequest

__all__ = ["offered_choices"]


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
