"""How fast the event loop takes long bodies in, so that many of them leave it time for everything else."""

import time
from collections.abc import Callable, Hashable

__all__ = ["Inflow"]

# Of every body, what is taken at once: more than a question with its choices has.
_FREE_BYTES = 2**16
_BYTES_PER_S = 2**24
_BURST_S = 0.1


class Inflow:
    """Paces the bodies of each owner.

    The first 64 KiB of a body are free. Of what follows an owner may send about a megabyte at once and 16 megabytes a
    second, which is far more text than a model reads.

    Args:
        clock: seconds of a clock that never goes back.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid_until: dict[Hashable, float] = {}

    def delay(self, owner: Hashable, had: int, n_bytes: int) -> float:
        """Return for how many seconds to read no more of a body.

        Args:
            owner: whose body it is.
            had: bytes of the body that came before.
            n_bytes: bytes that have come now.
        """
        counted = max(0, had + n_bytes - max(had, _FREE_BYTES))
        if not counted:
            return 0.0
        now = self._clock()
        paid_until = max(self._paid_until.get(owner, 0.0), now - _BURST_S) + counted / _BYTES_PER_S
        self._paid_until[owner] = paid_until
        return max(0.0, paid_until - now)
