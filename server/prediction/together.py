"""The questions of one request: they reach the queue at the same time, share the reading of a text and fail as one."""

import asyncio
from collections import defaultdict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from blora.inference.prefix import MIN_PREFIX, common_tokens
from blora.server.errors import ServerError
from blora.server.monitoring.recent_texts import AskedText

__all__ = ["Member", "Text", "Together"]


@dataclass(frozen=True, slots=True)
class Text:
    """Common beginning of the prompts of several questions.

    Attributes:
        key: equal for questions with the same text.
        n_tokens: length of the text, in tokens.
    """

    key: Hashable
    n_tokens: int


class Together:
    """Several questions of one request.

    Args:
        n_questions: number of questions, each of which has to be `expected` once.
        about: the text that they are about.
        beginnings: whether a run reads once what different prompts begin with.

    Attributes:
        about: the text.
        failure: the error of a question, because of which the others are not answered; None while there is none.
    """

    def __init__(self, n_questions: int, *, about: AskedText, beginnings: bool) -> None:
        self._beginnings = beginnings
        self.about = about
        self.failure: ServerError | None = None
        self._missing = n_questions
        self._complete = asyncio.Event()
        self._prompts: dict[Hashable, list[tuple[int, ...]]] = defaultdict(list)
        self._texts: dict[Hashable, Text | None] = {}

    @contextmanager
    def expected(self) -> Iterator["Member"]:
        """Yield a question's place among the others; a question that ends without a meeting keeps no other waiting."""
        member = Member(self)
        try:
            yield member
        finally:
            if not member.has_met:
                self._one_less()

    async def meet(self, reading: Hashable, prompt: tuple[int, ...]) -> Text | None:
        """Wait until no question is missing, and return the text that this one shares with others; None for none.

        Args:
            reading: identity of what is computed of a prompt; only questions with the same one share a text.
            prompt: the tokens of the question's prompt; none for a prompt that is read anew for each question.
        """
        if prompt:
            self._prompts[reading].append(prompt)
        self._one_less()
        await self._complete.wait()
        if reading not in self._texts:
            prompts = self._prompts[reading]
            shared = len(prompts) > 1 and (self._beginnings or len(set(prompts)) == 1)
            n_tokens = common_tokens(prompts) if shared else 0
            self._texts[reading] = Text((self, reading), n_tokens) if n_tokens >= MIN_PREFIX else None
        return self._texts[reading] if prompt else None

    def _one_less(self) -> None:
        self._missing -= 1
        if self._missing <= 0:
            self._complete.set()


class Member:
    """One question of a request.

    Args:
        together: all questions of the request.
    """

    def __init__(self, together: Together) -> None:
        self.together = together
        self.has_met = False

    async def meet(self, reading: Hashable, prompt: tuple[int, ...]) -> Text | None:
        """Wait for the other questions: see `Together.meet`."""
        self.has_met = True
        return await self.together.meet(reading, prompt)
