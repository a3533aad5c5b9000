"""The work that was refused lately, which counts as demand: replicas are added for it although it waits nowhere."""

from collections import deque

__all__ = ["RefusedWork"]

# Seconds for which a refused input counts.
KEPT_S = 30.0


class RefusedWork:
    """Work of inputs that were refused within the last 30 s; times are those of any one clock, in seconds."""

    def __init__(self) -> None:
        self._refused: deque[tuple[float, float]] = deque()

    def add(self, now: float, seconds: float) -> None:
        """Count an input that would have taken this many seconds."""
        self._forget(now)
        self._refused.append((now, seconds))

    def seconds(self, now: float) -> float:
        """Return the seconds that all counted inputs would have taken."""
        self._forget(now)
        return sum(seconds for _, seconds in self._refused)

    def _forget(self, now: float) -> None:
        while self._refused and self._refused[0][0] < now - KEPT_S:
            self._refused.popleft()
