"""Admission and order of tokenising: length limits, a bounded queue, and fair turns of owners."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import NamedTuple

from blora.server.engines.protocol import Row
from blora.server.errors import QueueFullError, TooLargeError
from blora.server.scheduling.fair_share import FairShare
from blora.server.schemas.requests import PredictRequest

__all__ = ["Lengths", "TokenizerQueue"]

# An owner may hold this many times the free room, so a lone owner four fifths; as in `admission`.
_SHARE = 4
# Weight of the newest text in the running mean of the time per character.
_SMOOTHING = 0.05


class Lengths(NamedTuple):
    """Length limits of a question, each the smallest of the server's limits.

    Attributes:
        prompt: most tokens of a prompt or a chat.
        row: most tokens of prompt and choices together.
        longest_token: most characters of a token.
    """

    prompt: int
    row: int
    longest_token: int

    def check_characters(self, question: PredictRequest, choices: Sequence[str]) -> int:
        """Return the number of characters of a question, checked before it is tokenised.

        Raises:
            TooLargeError: if the characters cannot fit into the allowed tokens.
        """
        asked, offered = _characters(question), sum(map(len, choices))
        if offered > self.row * self.longest_token:
            raise TooLargeError(
                f"The choices have {offered} characters, which make more than {self.row} tokens, the limit: shorten "
                "them.",
                code="prompt_too_long",
                param="choices",
            )
        if asked > self.prompt * self.longest_token:
            raise TooLargeError(
                f"The prompt has {asked} characters, which make more than {self.prompt} tokens, the limit: shorten it.",
                code="prompt_too_long",
                param=_param(question),
            )
        return asked + offered

    def check_row(self, row: Row, question: PredictRequest, choices: Sequence[str]) -> None:
        """Raise an error if a tokenised question is too long.

        Raises:
            TooLargeError: naming the part that is too long, the prompt or the choices.
        """
        beside = self.row - (row.n_tokens - row.prompt_tokens)
        if row.prompt_tokens <= min(self.prompt, beside):
            return
        if question.choices is None or _characters(question) >= sum(map(len, choices)):
            most = min(self.prompt, beside) if beside > 0 else self.prompt
            beside_these = " beside these choices" if most < self.prompt else ""
            raise TooLargeError(
                f"got a prompt of {row.prompt_tokens} tokens, expected at most {most}{beside_these}: shorten it",
                code="prompt_too_long",
                param=_param(question),
            )
        if row.prompt_tokens > self.prompt:  # with label scoring the prompt lists the choices
            got, most = row.prompt_tokens, self.prompt
        else:
            got, most = row.scored_tokens, self.row - row.prompt_tokens + row.n_choices
        raise TooLargeError(
            f"got choices of {got} tokens, expected at most {most} beside this prompt: shorten the choices",
            code="prompt_too_long",
            param="choices",
        )

    def too_long(self, question: PredictRequest, choices: Sequence[str]) -> TooLargeError:
        """Return the error for a question with more tokens than the model has positions."""
        if question.choices is not None and sum(map(len, choices)) > _characters(question):
            param, who = "choices", "The choices have"
        else:
            param, who = _param(question), "The prompt has"
        return TooLargeError(
            f"{who} more than {self.prompt} tokens, the limit: send fewer.", code="prompt_too_long", param=param
        )


def _characters(question: PredictRequest) -> int:
    if question.prompt is not None:
        return len(question.prompt.strip())
    return sum(len(turn.content) for turn in question.messages or ())


def _param(question: PredictRequest) -> str:
    return "messages" if question.messages else "prompt"


@dataclass(eq=False, slots=True)
class _Ticket:
    owner: Hashable
    cost: int  # characters
    called: asyncio.Event = field(default_factory=asyncio.Event)


class TokenizerQueue:
    """Queue of texts that are tokenised one at a time; owners take turns by characters.

    Args:
        max_inputs: most waiting texts.
        max_characters: most waiting characters; a text that waits alone may have more.
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, *, max_inputs: int, max_characters: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_inputs = max_inputs
        self._max_characters = max_characters
        self._clock = clock
        self._fair_share = FairShare()
        self._waiting: list[_Ticket] = []
        self._busy = False
        self._pace: float | None = None  # seconds per character

    @asynccontextmanager
    async def turn(self, owner: Hashable, characters: int) -> AsyncIterator[None]:
        """Wait for a turn, which lasts as long as the context; a cancelled task leaves the queue.

        Raises:
            QueueFullError: if there is no room to wait.
        """
        ticket = _Ticket(owner, max(characters, 1))
        if self._busy:
            self._check_room(ticket)
        self._waiting.append(ticket)
        self._call_next()
        try:
            await ticket.called.wait()
            started = self._clock()
            yield
            self._measure(ticket.cost, self._clock() - started)
        finally:
            if ticket.called.is_set():
                self._busy = False
            else:
                self._waiting.remove(ticket)
            self._call_next()

    def _call_next(self) -> None:
        if self._busy:
            return
        if not self._waiting:
            self._fair_share.reset()
            return
        turns = self._fair_share.turns(self._waiting)
        first = min(range(len(turns)), key=turns.__getitem__)
        ticket = self._waiting.pop(first)
        self._fair_share.served(turns[first], [ticket])
        self._busy = True
        ticket.called.set()

    def _check_room(self, ticket: _Ticket) -> None:
        own = [other for other in self._waiting if other.owner == ticket.owner]
        free_inputs = self._max_inputs - len(self._waiting)
        waiting = sum(other.cost for other in self._waiting)
        free = self._max_characters - waiting
        full = free_inputs <= 0 or (bool(self._waiting) and ticket.cost > free)
        own_cost = sum(other.cost for other in own) + ticket.cost
        takes_too_much = bool(own) and (len(own) >= _SHARE * free_inputs or own_cost > _SHARE * free)
        if full or takes_too_much:
            raise QueueFullError(
                f"{len(self._waiting)} inputs with {waiting} characters wait to be tokenised, {len(own)} of them "
                f"yours. The limits are {self._max_inputs} inputs and {self._max_characters} characters, of which one "
                "client may use four fifths: try again after the seconds in Retry-After.",
                retry_after_s=max(1, math.ceil(waiting * (self._pace or 0.0))),
            )

    def _measure(self, characters: int, seconds: float) -> None:
        pace = seconds / characters
        self._pace = pace if self._pace is None else self._pace + _SMOOTHING * (pace - self._pace)
