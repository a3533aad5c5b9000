"""A meeting point of questions, so that they reach the queue at the same time and may share a forward pass."""

import asyncio

__all__ = ["Together"]


class Together:
    """Wait of several questions for one another.

    Args:
        n_questions: number of questions, each of which has to `arrive` or `leave` once.
    """

    def __init__(self, n_questions: int) -> None:
        self._missing = n_questions
        self._complete = asyncio.Event()

    async def arrive(self) -> None:
        """Wait until no question is missing."""
        self.leave()
        await self._complete.wait()

    def leave(self) -> None:
        """Let the others go on without this question."""
        self._missing -= 1
        if self._missing <= 0:
            self._complete.set()
