"""When to send a request again: asking changes nothing on the server, so what did not get through may be sent again."""

import random
from dataclasses import dataclass

from blora.client.errors import ClientError, OverloadedError, UnavailableError, UnreachableError

__all__ = ["Retries"]

MOST_DOUBLINGS = 30
WORTH_ANOTHER = (OverloadedError, UnavailableError, UnreachableError)


@dataclass(frozen=True, slots=True)
class Retries:
    """Waits grow twofold, are random so that clients do not come back together, and never shorter than the server asks.

    Attributes:
        most: how often a request is sent again; 0 never.
        first_wait_s: seconds that the first wait is at most, unless the server asks for more.
        longest_wait_s: seconds that no later one exceeds by itself.
    """

    most: int = 10
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0

    def wait_s(self, failure: ClientError, n_tries: int) -> float | None:
        """Seconds to wait after a failure, None where it is final.

        Args:
            failure: how the last try ended.
            n_tries: how many there have been, 1 or more.
        """
        if n_tries > self.most or not isinstance(failure, WORTH_ANOTHER):
            return None
        doublings = min(n_tries - 1, MOST_DOUBLINGS)
        spread = random.uniform(0, min(self.longest_wait_s, self.first_wait_s * 2**doublings))
        return (failure.retry_after_s or 0.0) + spread
