"""Estimates of how long work takes, from recent forward passes."""

from collections import deque
from itertools import combinations
from math import ceil
from statistics import median

__all__ = ["Pace"]

# Weight of the newest forward pass in the running mean of the size of full passes.
_SMOOTHING = 0.05
# Most and fewest passes that count, and the seconds of work beyond which fewer count: a flood slows passes at once.
_MOST, _FEWEST, _RECENT_S = 32, 8, 5.0
# Two passes give a time per token if their sizes differ by the first share; the second share of pairs has to do so.
_APART, _PAIRS = 0.1, 1 / 3


class Pace:
    """Estimate of durations: a time for each forward pass and a time for each of its tokens x draws.

    A line is fitted to the recent passes by medians (Theil, 1950; Sen, 1968), so that a few far longer or far larger
    passes do not change it. Recent are the last 8 passes, and of those before them up to 24 more within the last 5 s of
    work. With fewer than 8, an estimate refuses no input on an idle server. If all recent passes have one size, the
    time per token is taken as 0: an input must not be refused on a guess.

    Args:
        max_batch_tokens: most tokens x draws in a pass; also an attribute.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self._full = float(max_batch_tokens)  # mean tokens x draws of a pass that left others waiting
        self._n_full = 0
        self._passes: deque[tuple[float, float]] = deque(maxlen=_MOST)
        # Seconds for each pass and for each token; None: to be fitted.
        self._line: tuple[float, float] | None = (0.0, 0.0)

    @property
    def known(self) -> bool:
        """Return whether enough passes were measured to refuse an input as too large."""
        return len(self._passes) >= _FEWEST

    def measure(self, tokens: int, seconds: float, *, full: bool) -> None:
        """Record a run.

        Args:
            tokens: its tokens x draws; a run above the limit of a pass counts as several passes.
            seconds: worker time of the run.
            full: whether inputs stayed behind for lack of room.
        """
        n_passes = ceil(tokens / self.max_batch_tokens)
        if full:
            self._n_full += 1
            self._full += max(_SMOOTHING, 1 / self._n_full) * (tokens / n_passes - self._full)
        self._passes.append((tokens / n_passes, seconds / n_passes))
        while len(self._passes) > _FEWEST and sum(seconds for _, seconds in self._passes) > _RECENT_S:
            self._passes.popleft()
        self._line = None

    def seconds(self, tokens: int) -> float:
        """Return the expected seconds for tokens x draws in passes of the usual size; 0 before any measurement."""
        if self._line is None:
            self._line = self._fitted()
        each_pass, each_token = self._line
        return ceil(tokens / self._full) * each_pass + tokens * each_token

    def _fitted(self) -> tuple[float, float]:
        pairs = list(combinations(self._passes, 2))
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if abs(b[0] - a[0]) > _APART * max(a[0], b[0])]
        each_token = max(0.0, median(slopes)) if len(slopes) > _PAIRS * len(pairs) else 0.0
        # Keeps the time for each pass from becoming negative.
        each_token = min(each_token, median(seconds / tokens for tokens, seconds in self._passes))
        return max(0.0, median(seconds - each_token * tokens for tokens, seconds in self._passes)), each_token
