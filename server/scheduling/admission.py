"""Admission to the queue: refuses inputs that would miss their deadline or leave no room for other clients."""

import math
from collections.abc import Collection, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from blora.server.errors import QueueFullError, TooLargeError
from blora.server.scheduling.fair_share import Owned
from blora.server.scheduling.pace import Pace
from blora.server.scheduling.runs import Work

__all__ = ["Admission", "Held", "Owner", "QueueState", "Room", "held_by_owner"]

P = TypeVar("P")

# A client, and an adapter of a client, may hold this many times the free room: if alone, four fifths and three quarters
# of the queue (dynamic thresholds: Choudhury, Hahne, 1998).
_CLIENT_SHARE = 4
_ADAPTER_SHARE = 3
# Share of the time to the deadline that an answer may be expected to take; the rest allows for errors of the estimate.
_DEADLINE_SHARE = 0.75
# Requests of typed questions have no number of draws.
_REMEDY = "shorten the prompt or the choices, or ask for fewer draws (n_samples in /v1/predict)"


class Owner(NamedTuple):
    """Owner of an input: the client that asks, None for all clients without a key, and the adapter that it asks."""

    client: str | None
    adapter: str


class Held(NamedTuple):
    """Number and cost of waiting inputs."""

    inputs: int
    cost: int


_NOTHING = Held(0, 0)


def held_by_owner(waiting: Iterable[Owned]) -> dict[Hashable, Held]:
    """Return what each owner has waiting."""
    held: dict[Hashable, Held] = {}
    for work in waiting:
        inputs, cost = held.get(work.owner, _NOTHING)
        held[work.owner] = Held(inputs + 1, cost + work.cost)
    return held


@dataclass(frozen=True, slots=True)
class QueueState:
    """State of a queue when a new input arrives; the batcher's costs are in tokens x draws.

    Attributes:
        inputs: number of waiting inputs.
        cost: cost of the waiting inputs.
        client_inputs: number of waiting inputs of the new input's client.
        client_cost: cost of the client's waiting inputs.
        adapter_inputs: number of the client's waiting inputs for the new input's adapter.
        adapter_cost: cost of these.
        ahead: cost of the work that is running or will be done before the new input.
    """

    inputs: int
    cost: int
    client_inputs: int
    client_cost: int
    adapter_inputs: int
    adapter_cost: int
    ahead: int

    @classmethod
    def of(cls, held: Mapping[Hashable, Held], owner: Hashable, *, ahead: int) -> "QueueState":
        """Return the state of a queue for a new input.

        Args:
            held: what each owner has waiting.
            owner: owner of the new input, an Owner or, in a queue that knows no adapters, a client.
            ahead: cost of the work that is running or will be done before the new input.
        """
        of_client = [its for other, its in held.items() if _client(other) == _client(owner)]
        of_adapter = held.get(owner, _NOTHING) if isinstance(owner, Owner) else _NOTHING
        return cls(*_together(held.values()), *_together(of_client), *of_adapter, ahead=ahead)


def _together(held: Collection[Held]) -> Held:
    return Held(sum(its.inputs for its in held), sum(its.cost for its in held))


def _client(owner: Hashable) -> Hashable:
    return owner.client if isinstance(owner, Owner) else owner


class Room(NamedTuple):
    """Limits on the number of waiting inputs and on their cost, of which one client may hold four fifths.

    Attributes:
        inputs: most waiting inputs.
        cost: most cost of the waiting inputs; an input that waits alone may cost more.
    """

    inputs: int
    cost: int

    def is_full(self, cost: int, waiting: QueueState) -> bool:
        """Return whether there is no room for an input beside the waiting ones."""
        return waiting.inputs >= self.inputs or (waiting.inputs > 0 and waiting.cost + cost > self.cost)

    def exceeds_share(self, cost: int, waiting: QueueState) -> bool:
        """Return whether a client, or one of its adapters, would hold too much of the room with another input."""
        free_inputs, free = self.inputs - waiting.inputs, self.cost - waiting.cost
        return any(
            held_inputs and (held_inputs >= share * free_inputs or held + cost > share * free)
            for share, held_inputs, held in (
                (_CLIENT_SHARE, waiting.client_inputs, waiting.client_cost),
                (_ADAPTER_SHARE, waiting.adapter_inputs, waiting.adapter_cost),
            )
        )


class Admission:
    """Limits on the size of an input and of the queue.

    Args:
        max_batch_tokens: most padded tokens x draws in a forward pass.
        max_queue_tokens: most waiting tokens x draws.
        max_queue_requests: most waiting inputs.
        max_input_passes: most forward passes for one input.
        timeout_s: seconds within which an input has to be answered on an idle server.
    """

    def __init__(
        self,
        *,
        max_batch_tokens: int,
        max_queue_tokens: int,
        max_queue_requests: int,
        max_input_passes: int,
        timeout_s: float,
    ) -> None:
        self.pace = Pace(max_batch_tokens)
        self._max_batch_tokens = max_batch_tokens
        self._room = Room(max_queue_requests, max_queue_tokens)
        self._timeout_s = timeout_s
        self._max_input_tokens = max_input_passes * max_batch_tokens

    def check_size(self, work: Work[P], now: float) -> None:
        """Raise an error if an input could not be answered even on an idle server.

        Args:
            work: the input.
            now: the time, of the clock that passes are measured by.

        Raises:
            TooLargeError: if one draw exceeds a forward pass, if all draws exceed the queue or the limit of one
                input, or if the input takes longer than the timeout at the recent pace.
        """
        if work.n_tokens > self._max_batch_tokens:
            raise TooLargeError(
                f"got {work.n_tokens} tokens, expected at most {self._max_batch_tokens}: shorten the prompt"
            )
        asked = f"{work.n_tokens} tokens x {max(work.n_draws, work.most_draws)} draws"
        if work.cost > self._room.cost:
            raise TooLargeError(f"got {asked}, expected at most {self._room.cost} in all: {_REMEDY}")
        if work.most > self._max_input_tokens:
            raise TooLargeError(
                f"got {asked}, expected at most {self._max_input_tokens} in one input: {_REMEDY}",
                code="too_much_work",
            )
        expected = self.pace.seconds(work.cost)
        if self.pace.is_known(now) and expected > self._timeout_s:
            raise TooLargeError(
                f"This input takes about {expected:.0f} s on this server even if nothing else runs "
                f"({work.n_tokens} tokens x {work.n_draws} draws), and its answer is due within "
                f"{self._timeout_s:.0f} s: {_REMEDY}.",
                code="too_much_work",
            )

    def check_room(self, cost: int, waiting: QueueState, seconds_left: float) -> None:
        """Raise an error if an input may not join the queue.

        Args:
            cost: cost of the input, in tokens x draws.
            waiting: state of the queue.
            seconds_left: seconds until the input's deadline.

        Raises:
            QueueFullError: if the queue or the share of the client or its adapter is full, or the input would miss its
                deadline.
        """
        if self._room.is_full(cost, waiting):
            raise QueueFullError(
                f"The queue is full: it holds {waiting.inputs} of at most {self._room.inputs} inputs, and "
                f"{waiting.cost} of at most {self._room.cost} tokens x draws. Try again after the seconds in "
                "Retry-After.",
                retry_after_s=self._retry_after_s(waiting.ahead),
            )
        if self._room.exceeds_share(cost, waiting):
            raise QueueFullError(
                f"Your {waiting.client_inputs} waiting inputs, with {waiting.client_cost} tokens x draws, "
                f"{waiting.adapter_inputs} of them for this adapter, have reached your share of the queue: try again "
                "after the seconds in Retry-After.",
                retry_after_s=self._retry_after_s(waiting.ahead),
            )
        expected = self.pace.seconds_now(waiting.ahead + cost)
        if waiting.ahead and expected > _DEADLINE_SHARE * seconds_left:
            raise QueueFullError(
                f"The answer is expected in about {expected:.1f} s, but must be expected within "
                f"{_DEADLINE_SHARE * seconds_left:.1f} s to meet its deadline: try again after the seconds in "
                "Retry-After.",
                retry_after_s=max(1, math.ceil(expected - _DEADLINE_SHARE * seconds_left)),
            )

    def _retry_after_s(self, ahead: int) -> int:
        return max(1, math.ceil(self.pace.seconds_now(ahead)))
