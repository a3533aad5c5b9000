"""How long work takes, by the forward passes of late."""

from collections import deque
from itertools import combinations
from math import ceil
from statistics import median

__all__ = ["Pace"]

# Weight of the newest forward pass in the running mean of how full they are.
_SMOOTHING = 0.05
# Passes that are looked back at, and from how many on a pace may refuse what would be too much even for an idle server.
_WINDOW, _KNOWN = 32, 8
# Two passes tell what a token takes if their sizes differ by this share, and if as many pairs do.
_APART, _PAIRS = 0.1, 1 / 3


class Pace:
    """Predicts durations: so long for each forward pass, and so long for each of its tokens x draws.

    A line through the passes of late, by medians (Theil, 1950; Sen, 1968): a pass that took far longer than others, or
    was far larger, does not bend it. Passes of one size tell nothing about others, which are then expected to take as
    long, whatever is in them: nobody is to be refused on a guess.

    Args:
        max_batch_tokens: most tokens x draws in a pass, kept as an attribute.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self._full = float(max_batch_tokens)  # what a pass holds while others wait
        self._n_full = 0
        self._passes: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._line: tuple[float, float] | None = (
            0.0,
            0.0,
        )  # seconds for each pass, and for each token; None: to be found

    @property
    def known(self) -> bool:
        """Return whether enough has been measured to call an input too much."""
        return len(self._passes) >= _KNOWN

    def measure(self, tokens: int, seconds: float, *, full: bool) -> None:
        """Take note of a run.

        Args:
            tokens: its tokens x draws, in as many passes as these take.
            seconds: how long it had the worker.
            full: whether it left others waiting for lack of room.
        """
        n_passes = ceil(tokens / self.max_batch_tokens)
        if full:
            self._n_full += 1
            self._full += max(_SMOOTHING, 1 / self._n_full) * (tokens / n_passes - self._full)
        self._passes.append((tokens / n_passes, seconds / n_passes))
        self._line = None

    def seconds(self, tokens: int) -> float:
        """How long so many tokens x draws will take, in passes as full as of late; 0 as long as nothing is known."""
        if self._line is None:
            self._line = self._fitted()
        each_pass, each_token = self._line
        return ceil(tokens / self._full) * each_pass + tokens * each_token

    def _fitted(self) -> tuple[float, float]:
        pairs = list(combinations(self._passes, 2))
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if abs(b[0] - a[0]) > _APART * max(a[0], b[0])]
        each_token = max(0.0, median(slopes)) if len(slopes) > _PAIRS * len(pairs) else 0.0
        # No pass takes less than nothing by itself.
        each_token = min(each_token, median(seconds / tokens for tokens, seconds in self._passes))
        return max(0.0, median(seconds - each_token * tokens for tokens, seconds in self._passes)), each_token
