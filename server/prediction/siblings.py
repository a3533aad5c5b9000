"""The answers to one request: they are made one at a time, and counted and recorded together once none is missing."""

import asyncio
import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

from blora.server.errors import DisconnectedError, InternalError, ServerError

__all__ = ["Made", "Siblings", "siblings_of_a_request"]


class Made(NamedTuple):
    """Actions on an answer, of which one is taken once it is known whether the client gets it.

    Attributes:
        record: records it for its feedback, counts it, and returns whether its outcome is requested.
        discard: counts it as one that no client gets, because of an error or, for None, of another question's failure.
    """

    record: Callable[[], bool]
    discard: Callable[[ServerError | None], None]


class Siblings:
    """Answers to the inputs or questions of one request."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._begun = False
        self._made: dict[str, Made] = {}

    async def turn(self) -> None:
        """Wait until an answer may be made, so that the event loop does other work between two answers.

        A forward pass wakes all of its questions at once, and without turns they would all be answered before anything
        else is done.
        """
        async with self._turn:
            if self._begun:
                await asyncio.sleep(0)
            self._begun = True

    def add(self, prediction_id: str, made: Made) -> None:
        """Keep the actions on a prediction."""
        self._made[prediction_id] = made

    async def record(self) -> dict[str, bool]:
        """Record all predictions, and return by prediction id whether the outcome is requested.

        It is called once none is missing, so that no outcome is awaited of an answer that no client has. Of the
        questions about a text one counts in the tests of drift and of the promise, withheld or not: in a random order
        this is a random one, as in calibrations, and whether it was answered early, which depends on the answer, does
        not matter.
        """
        requested = {}
        for prediction_id in random.SystemRandom().sample(list(self._made), len(self._made)):
            requested[prediction_id] = self._made[prediction_id].record()
            del self._made[prediction_id]
            await asyncio.sleep(0)  # the hashes of many choices take time that other requests need
        return requested

    def discard(self, error: ServerError | None) -> None:
        """Discard the predictions that are not recorded: see `Made`."""
        while self._made:
            self._made.popitem()[1].discard(error)


@contextmanager
def siblings_of_a_request() -> Iterator[Siblings]:
    """Yield the answers to a request; those that are not recorded in the end are discarded."""
    siblings = Siblings()
    try:
        yield siblings
    except asyncio.CancelledError:
        siblings.discard(DisconnectedError("the client left"))
        raise
    except Exception:
        siblings.discard(InternalError("The server failed unexpectedly: report this as a bug."))
        raise
    finally:
        siblings.discard(None)
