"""Who is tokenised when: owners in turns, nobody who has left, and no text that cannot be short enough."""

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

__all__ = ["Lengths", "Tokenizing"]

# An owner may hold this many times what is left free, so alone four fifths; as in `admission`.
_SHARE = 4
# Weight of the newest text in the running mean of the speed.
_SMOOTHING = 0.05


class Lengths(NamedTuple):
    """How long a question may be. A client hears one number of each, whichever limit of the server it comes from.

    Attributes:
        prompt: most tokens of a prompt, or of a chat.
        row: most tokens of it and of its choices.
        longest_token: most characters of a token.
    """

    prompt: int
    row: int
    longest_token: int

    def check_characters(self, question: PredictRequest, choices: Sequence[str]) -> int:
        """Return the characters of a question, before one of them is read.

        Raises:
            TooLargeError: if these are more than so many tokens can hold.
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
        """Returns if a question is short enough, now that its tokens are known.

        Raises:
            TooLargeError: naming what is long, the prompt or the choices.
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
        if row.prompt_tokens > self.prompt:  # which lists the choices
            got, most = row.prompt_tokens, self.prompt
        else:
            got, most = row.scored_tokens, self.row - row.prompt_tokens + row.n_choices
        raise TooLargeError(
            f"got choices of {got} tokens, expected at most {most} beside this prompt: shorten the choices",
            code="prompt_too_long",
            param="choices",
        )

    def too_long(self, question: PredictRequest, choices: Sequence[str]) -> TooLargeError:
        """The error for a question that has more tokens than the model has positions."""
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


class Tokenizing:
    """One text is tokenised at a time, and owners take turns by characters, whatever each has waiting.

    Args:
        max_inputs: most texts waiting.
        max_characters: most characters waiting, of those that do not wait alone.
        clock: seconds, which never go back.
    """

    def __init__(self, *, max_inputs: int, max_characters: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._max_inputs = max_inputs
        self._max_characters = max_characters
        self._clock = clock
        self._fair_share = FairShare()
        self._waiting: list[_Ticket] = []
        self._busy = False
        self._pace: float | None = None  # seconds a character

    @asynccontextmanager
    async def turn(self, owner: Hashable, characters: int) -> AsyncIterator[None]:
        """Waits for a turn, which lasts as long as the context. Whoever is cancelled meanwhile waits no longer.

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
                f"{len(self._waiting)} inputs of {waiting} characters wait to be tokenised, {len(own)} of them yours. "
                f"There is room for {self._max_inputs} and {self._max_characters}, of which you may have four fifths: "
                "try again after the seconds in Retry-After.",
                retry_after_s=max(1, math.ceil(waiting * (self._pace or 0.0))),
            )

    def _measure(self, characters: int, seconds: float) -> None:
        pace = seconds / characters
        self._pace = pace if self._pace is None else self._pace + _SMOOTHING * (pace - self._pace)
