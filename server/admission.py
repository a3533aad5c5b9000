"""Who may wait: whatever could not be answered in time, or would leave no room for others, is refused at the door."""

import math
from dataclasses import dataclass

from blora.server.errors import QueueFullError, TooLargeError

__all__ = ["Admission", "Pace", "Waiting"]

# Weight of the newest forward pass in the running means.
_SMOOTHING = 0.05
# An owner may hold this many times what is left free, so alone four fifths of the queue
# (dynamic thresholds: Choudhury, Hahne, 1998).
_SHARE = 4
# Part of the time to the deadline that a wait may be expected to take; the rest is for the estimate to be wrong.
_PUNCTUAL = 0.75


class Pace:
    """How long forward passes take, of late: so long for each, and so long for each of its tokens x draws.

    A line through running means of both. Passes of one size tell nothing about others, which are then expected to take
    as long, whatever is in them: nobody is to be refused on a guess.

    Args:
        max_batch_tokens: most tokens x draws in a pass.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self._full = float(max_batch_tokens)  # what a pass holds while others wait
        self._n = self._n_full = 0
        self._x = self._y = self._xx = self._xy = 0.0  # means of tokens, seconds, and their products

    def measure(self, tokens: int, seconds: float, *, full: bool) -> None:
        """So many tokens x draws took so long, in a pass that left others waiting or did not."""
        if full:
            self._n_full += 1
            self._full += max(_SMOOTHING, 1 / self._n_full) * (tokens - self._full)
        self._n += 1
        weight = max(_SMOOTHING, 1 / self._n)
        self._x += weight * (tokens - self._x)
        self._y += weight * (seconds - self._y)
        self._xx += weight * (tokens * tokens - self._xx)
        self._xy += weight * (tokens * seconds - self._xy)

    def seconds(self, tokens: int) -> float:
        """How long so many tokens x draws will take, in passes as full as of late; 0 as long as nothing is known."""
        passes = math.ceil(tokens / self._full)
        variance = self._xx - self._x * self._x
        covariance = self._xy - self._x * self._y
        each_token = max(0.0, covariance / variance) if variance > 1e-3 * self._xx else 0.0
        each_token = min(each_token, self._y / self._x) if self._x else 0.0  # no pass takes less than nothing by itself
        each_pass = self._y - each_token * self._x
        return passes * each_pass + tokens * each_token


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
    """

    def __init__(self, *, max_batch_tokens: int, max_queue_tokens: int, max_queue_requests: int) -> None:
        self.pace = Pace(max_batch_tokens)
        self._max_batch_tokens = max_batch_tokens
        self._max_queue_tokens = max_queue_tokens
        self._max_queue_requests = max_queue_requests

    def check_size(self, n_tokens: int, n_draws: int) -> None:
        """Returns if an input of `n_tokens` may be answered at all.

        Raises:
            TooLargeError: if one of its draws exceeds a forward pass, or all of them the queue.
        """
        if n_tokens > self._max_batch_tokens:
            raise TooLargeError(f"got {n_tokens} tokens, expected at most {self._max_batch_tokens}: shorten the prompt")
        if n_tokens * n_draws > self._max_queue_tokens:
            raise TooLargeError(
                f"got {n_tokens} tokens x {n_draws} draws, expected at most "
                f"{self._max_queue_tokens} in all: shorten the prompt or ask for fewer draws"
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
                f"got a queue of {waiting.inputs} inputs and {waiting.cost} tokens x draws, expected "
                f"at most {self._max_queue_requests} and {self._max_queue_tokens}: try again after Retry-After",
                retry_after_s=self._retry_after_s(waiting.ahead),
            )
        if self._takes_too_much(cost, waiting):
            raise QueueFullError(
                f"got {waiting.own_inputs} inputs and {waiting.own_cost} tokens x draws of yours waiting, expected at "
                f"most {_SHARE} times what others could still send: try again after Retry-After",
                retry_after_s=self._retry_after_s(waiting.ahead),
            )
        expected = self.pace.seconds(waiting.ahead + cost)
        if waiting.ahead and expected > _PUNCTUAL * seconds_left:
            raise QueueFullError(
                f"got a wait of about {expected:.1f} s, expected at most {_PUNCTUAL * seconds_left:.1f} s, for the "
                "answer is due by then: try again after Retry-After",
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
