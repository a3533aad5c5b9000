"""Retries of failed requests, which are safe because questions change nothing on the server."""

import random
from dataclasses import asdict, dataclass
from math import inf

from blora.client.errors import ClientError, OverloadedError, UnavailableError, UnreachableError
from blora.errors import ConfigError

__all__ = ["Retries"]

MOST_DOUBLINGS = 30
WORTH_ANOTHER = (OverloadedError, UnavailableError, UnreachableError)


@dataclass(frozen=True, slots=True)
class Retries:
    """Retry policy with exponential, randomised waits that are at least as long as the server's Retry-After.

    Attributes:
        most: most retries of a request; 0 for none, None for as many as the call's deadline allows.
        first_wait_s: upper bound of the first wait, in seconds.
        longest_wait_s: upper bound of all waits, in seconds. A longer Retry-After overrides both bounds.

    Raises:
        ConfigError: if one of them is negative, NaN or infinite.
    """

    most: int | None = None
    first_wait_s: float = 0.2
    longest_wait_s: float = 5.0

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name == "most" and value is None:
                continue
            if not 0 <= value < inf:  # true for NaN too
                raise ConfigError(f"got {name}={value} in Retries, expected 0 or more: give a finite number")

    def wait_s(self, failure: ClientError, n_tries: int) -> float | None:
        """Return the seconds to wait after a failure, or None if it is final.

        Args:
            failure: the error of the last try.
            n_tries: number of tries so far, 1 or more.
        """
        if (self.most is not None and n_tries > self.most) or not isinstance(failure, WORTH_ANOTHER):
            return None
        doublings = min(n_tries - 1, MOST_DOUBLINGS)
        spread = random.uniform(0, min(self.longest_wait_s, self.first_wait_s * 2**doublings))
        return (failure.retry_after_s or 0.0) + spread
