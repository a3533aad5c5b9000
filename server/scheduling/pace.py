"""Estimates of how long work takes, from recent forward passes."""

from collections import deque
from itertools import accumulate, combinations
from math import ceil
from statistics import median

__all__ = ["Pace"]

# Weight of the newest forward pass in the running mean of the size of full passes.
_SMOOTHING = 0.05
# Number of recent passes that count, and number needed before an estimate may refuse an input on an idle server.
_WINDOW, _KNOWN = 32, 8
# Seconds without a pass after which an estimate refuses no such input: one that runs shows whether it is still true.
_KEPT_S = 60.0
# The speed of the moment is that of the passes within the last seconds of work, and of so many passes at least.
_MOMENT_S, _MOMENT = 5.0, 3
# Two passes give a time per token if their sizes differ by the first share; the second share of pairs has to do so.
_APART, _PAIRS = 0.1, 1 / 3


class Pace:
    """Estimate of durations: a time for each forward pass and a time for each of its tokens x draws.

    A line is fitted to the recent passes by medians (Theil, 1950; Sen, 1968), so that a few far longer or far larger
    passes do not change it. If all recent passes have one size, the time per token is taken as 0: an input must not be
    refused on a guess. The speed of the moment is the median by which the latest passes depart from the line.

    Args:
        max_batch_tokens: most tokens x draws in a pass; also an attribute.
    """

    def __init__(self, max_batch_tokens: int) -> None:
        self.max_batch_tokens = max_batch_tokens
        self._full = float(max_batch_tokens)  # mean tokens x draws of a pass that left others waiting
        self._n_full = 0
        self._passes: deque[tuple[float, float]] = deque(maxlen=_WINDOW)
        self._measured_at = 0.0
        # Seconds for each pass and for each token; None: to be fitted.
        self._line: tuple[float, float] | None = (0.0, 0.0)
        self._slowdown = 1.0

    def is_known(self, now: float) -> bool:
        """Return whether enough passes were measured, and one lately, to refuse an input as too large."""
        return len(self._passes) >= _KNOWN and now - self._measured_at < _KEPT_S

    def measure(self, tokens: int, seconds: float, *, full: bool, now: float) -> None:
        """Record a run.

        Args:
            tokens: its tokens x draws; a run above the limit of a pass counts as several passes.
            seconds: worker time of the run.
            full: whether inputs stayed behind for lack of room.
            now: time of its end, in seconds of any one clock.
        """
        n_passes = ceil(tokens / self.max_batch_tokens)
        if full:
            self._n_full += 1
            self._full += max(_SMOOTHING, 1 / self._n_full) * (tokens / n_passes - self._full)
        self._passes.append((tokens / n_passes, seconds / n_passes))
        self._measured_at = now
        self._line = None

    def seconds(self, tokens: int) -> float:
        """Return the expected seconds for tokens x draws in passes of the usual size; 0 before any measurement."""
        each_pass, each_token = self._fit()
        return ceil(tokens / self._full) * each_pass + tokens * each_token

    def seconds_now(self, tokens: int) -> float:
        """Return the same at the speed of the moment, which a flood changes at once."""
        return self.seconds(tokens) * self._slowdown

    def _fit(self) -> tuple[float, float]:
        if self._line is None:
            self._line = each_pass, each_token = self._fitted()
            work = accumulate(seconds for _, seconds in reversed(self._passes))
            n_latest = max(_MOMENT, sum(seconds <= _MOMENT_S for seconds in work))
            latest = ((seconds, each_pass + each_token * tokens) for tokens, seconds in list(self._passes)[-n_latest:])
            self._slowdown = median(seconds / expected if expected else 1.0 for seconds, expected in latest)
        return self._line

    def _fitted(self) -> tuple[float, float]:
        pairs = list(combinations(self._passes, 2))
        slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in pairs if abs(b[0] - a[0]) > _APART * max(a[0], b[0])]
        each_token = max(0.0, median(slopes)) if len(slopes) > _PAIRS * len(pairs) else 0.0
        # Keeps the time for each pass from becoming negative.
        each_token = min(each_token, median(seconds / tokens for tokens, seconds in self._passes))
        return max(0.0, median(seconds - each_token * tokens for tokens, seconds in self._passes)), each_token
