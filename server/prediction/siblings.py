"""The answers to one request: they are made one at a time, and recorded together once none is missing."""

import asyncio
import random
from collections.abc import Callable

__all__ = ["Siblings"]


class Siblings:
    """Answers to the inputs or questions of one request."""

    def __init__(self) -> None:
        self._turn = asyncio.Lock()
        self._begun = False
        self._records: dict[str, Callable[[], bool]] = {}

    async def turn(self) -> None:
        """Wait until an answer may be made, so that the event loop does other work between two answers.

        A forward pass wakes all of its questions at once, and without turns they would all be answered before anything
        else is done.
        """
        async with self._turn:
            if self._begun:
                await asyncio.sleep(0)
            self._begun = True

    def add(self, prediction_id: str, record: Callable[[], bool]) -> None:
        """Keep the function that records a prediction for its feedback and returns whether its outcome is requested."""
        self._records[prediction_id] = record

    async def record(self) -> dict[str, bool]:
        """Record all predictions, and return by prediction id whether the outcome is requested.

        It is called once none is missing, so that no outcome is awaited of an answer that no client has. Of the
        questions about a text one counts in the tests of drift and of the promise, withheld or not: in a random order
        this is a random one, as in calibrations, and whether it was answered early, which depends on the answer, does
        not matter.
        """
        requested = {}
        for prediction_id in random.SystemRandom().sample(list(self._records), len(self._records)):
            requested[prediction_id] = self._records[prediction_id]()
            await asyncio.sleep(0)  # the hashes of many choices take time that other requests need
        return requested
