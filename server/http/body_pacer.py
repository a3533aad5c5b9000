"""Pacing of long request bodies, so that reading many of them does not occupy the event loop."""

import math
import time
from collections.abc import Callable, Hashable

from blora.server.errors import RateLimitedError

__all__ = ["BodyPacer"]

# Bytes of each body that are not paced: more than one question with its choices takes.
_FREE_BYTES = 2**16
_BYTES_PER_S = 2**24
_BURST_S = 0.1
# Fewest owners among whom those without a debt are looked for, to be forgotten.
_MIN_OWNERS = 1024


class BodyPacer:
    """A rate limit on the body bytes of each owner.

    The first 64 KiB of a body do not count. Beyond them an owner may send about 1 MB at once and 16 MB per second,
    which is far more text than a model reads.

    Args:
        clock: a monotonic clock, in seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._paid_until: dict[Hashable, float] = {}
        self._forget_at = _MIN_OWNERS  # number of owners

    def delay(self, owner: Hashable, had: int, n_bytes: int, *, most_s: float) -> float:
        """Return the seconds to wait before reading more of a body.

        Args:
            owner: the body's owner.
            had: bytes of the body received before.
            n_bytes: bytes received now.
            most_s: most seconds that the body may wait.

        Raises:
            RateLimitedError: if the body would wait longer; its new bytes do not count.
        """
        counted = max(0, had + n_bytes - max(had, _FREE_BYTES))
        if not counted:
            return 0.0
        now = self._clock()
        paid_until = max(self._paid_until.get(owner, 0.0), now - _BURST_S) + counted / _BYTES_PER_S
        delay_s = max(0.0, paid_until - now)
        if delay_s > most_s:
            wait_s = math.ceil(delay_s)
            raise RateLimitedError(
                f"This client sends more than {_BYTES_PER_S >> 20} MiB of long bodies per second, which is the limit: "
                f"try again in {wait_s} s.",
                retry_after_s=wait_s,
            )
        if len(self._paid_until) >= self._forget_at:
            self._paid_until = {other: until for other, until in self._paid_until.items() if until > now - _BURST_S}
            self._forget_at = max(_MIN_OWNERS, 2 * len(self._paid_until))
        self._paid_until[owner] = paid_until
        return delay_s
