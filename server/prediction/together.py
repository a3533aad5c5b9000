"""A meeting point of questions, so that they reach the queue at the same time and may share a forward pass."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager

__all__ = ["Together"]


class Together:
    """Wait of several questions for one another.

    Args:
        n_questions: number of questions, each of which has to be `expected` once.
    """

    def __init__(self, n_questions: int) -> None:
        self._missing = n_questions
        self._complete = asyncio.Event()

    @contextmanager
    def expected(self) -> Iterator[Callable[[], Awaitable[None]]]:
        """Yield a function that waits until no question is missing; a question that ends without it keeps no other."""
        arrived = False

        async def arrive() -> None:
            nonlocal arrived
            arrived = True
            self._one_less()
            await self._complete.wait()

        try:
            yield arrive
        finally:
            if not arrived:
                self._one_less()

    def _one_less(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._complete.set()
