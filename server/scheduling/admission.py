"""Who may wait: whatever could not be answered in time, or would leave no room for others, is refused at the door."""

import math
from dataclasses import dataclass
from typing import TypeVar

from blora.server.errors import QueueFullError, TooLargeError
from blora.server.scheduling.pace import Pace
from blora.server.scheduling.runs import Work

__all__ = ["Admission", "Waiting"]

P = TypeVar("P")

# An owner may hold this many times what is left free, so alone four fifths of the queue
# (dynamic thresholds: Choudhury, Hahne, 1998).
_SHARE = 4
# Part of the time to the deadline that a wait may be expected to take; the rest is for the estimate to be wrong.
_PUNCTUAL = 0.75


@dataclass(frozen=True, slots=True)
class Waiting:
    """What a newcomer finds, in inputs and in tokens x draws.

    Attributes:
        inputs: those in the queue.
        cost: of these.
        own_inputs: those of the newcomer's owner.
        own_cost: of these.
        ahead: cost of what will be done before the newcomer, with what is being done.
    """

    inputs: int
    cost: int
    own_inputs: int
    own_cost: int
    ahead: int


class Admission:
    """The queue's limits.

    Args:
        max_batch_tokens: most padded tokens x draws in a forward pass.
        max_queue_tokens: most tokens x draws waiting.
        max_queue_requests: most inputs waiting.
        max_input_passes: most forward passes that one input may fill.
    """

    def __init__(
        self, *, max_batch_tokens: int, max_queue_tokens: int, max_queue_requests: int, max_input_passes: int
    ) -> None:
        self.pace = Pace(max_batch_tokens)
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._max_queue_requests = max_queue_requests
        self._max_input_tokens = max_input_passes * max_batch_tokens

    def check_size(self, work: Work[P], seconds_left: float) -> None:
        """Returns if an input may be answered at all, whatever waits.

        Args:
            work: the input.
            seconds_left: until its deadline.

        Raises:
            TooLargeError: if one of its draws exceeds a forward pass, all of them the queue or what one input may take,
                or if it would take longer than is left by the pace of late.
        """
        if work.n_tokens > self._max_batch_tokens:
            raise TooLargeError(
                f"got {work.n_tokens} tokens, expected at most {self._max_batch_tokens}: shorten the prompt"
            )
        asked = f"{work.n_tokens} tokens x {max(work.n_draws, work.most_draws)} draws"
        if work.cost > self._max_queue_tokens:
            raise TooLargeError(
                f"got {asked}, expected at most {self._max_queue_tokens} in all: shorten the prompt or ask for fewer "
                "draws"
            )
        if work.most > self._max_input_tokens:
            raise TooLargeError(
                f"got {asked}, expected at most {self._max_input_tokens} in one input: ask for fewer draws "
                "(n_samples), or shorten the prompt or the choices",
                code="too_much_work",
            )
        expected = self.pace.seconds(work.cost)
        if self.pace.known and expected > seconds_left:
            raise TooLargeError(
                f"This input takes about {expected:.0f} s on this server even if nothing else runs "
                f"({work.n_tokens} tokens x {work.n_draws} draws), and its answer is due within {seconds_left:.0f} s: "
                "ask for fewer draws (n_samples), or shorten the prompt or the choices.",
                code="too_much_work",
            )

    def check_room(self, cost: int, waiting: Waiting, seconds_left: float) -> None:
        """Returns if an input may wait.

        Args:
            cost: of the newcomer, in tokens x draws.
            waiting: what it finds.
            seconds_left: until its deadline.

        Raises:
            QueueFullError: if there is no room, or no time.
        """
        if waiting.cost + cost > self._max_queue_tokens or waiting.inputs >= self._max_queue_requests:
            raise QueueFullError(
                f"The queue is full, with {waiting.inputs} inputs and {waiting.cost} tokens x draws of at most "
                f"{self._max_queue_requests} and {self._max_queue_tokens}: try again after the seconds in Retry-After.",
                retry_after_s=self._retry_after_s(waiting.ahead),
            )
        if self._takes_too_much(cost, waiting):
            raise QueueFullError(
                f"Your inputs that wait, {waiting.own_inputs} with {waiting.own_cost} tokens x draws, have reached "
                "your share of the queue: try again after the seconds in Retry-After.",
                retry_after_s=self._retry_after_s(waiting.ahead),
            )
        expected = self.pace.seconds(waiting.ahead + cost)
        if waiting.ahead and expected > _PUNCTUAL * seconds_left:
            raise QueueFullError(
                f"The answer is expected in about {expected:.1f} s, and would have to be within "
                f"{_PUNCTUAL * seconds_left:.1f} s to keep its deadline: try again after the seconds in Retry-After.",
                retry_after_s=max(1, math.ceil(expected - _PUNCTUAL * seconds_left)),
            )

    def _takes_too_much(self, cost: int, waiting: Waiting) -> bool:
        if not waiting.own_inputs:
            return False
        free_inputs = self._max_queue_requests - waiting.inputs
        free = self._max_queue_tokens - waiting.cost
        return waiting.own_inputs >= _SHARE * free_inputs or waiting.own_cost + cost > _SHARE * free

    def _retry_after_s(self, ahead: int) -> int:
        return max(1, math.ceil(self.pace.seconds(ahead)))
