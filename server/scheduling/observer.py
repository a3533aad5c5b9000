"""The reports of a batcher, which become metrics."""

from typing import Protocol

from blora.server.scheduling.runs import DropReason

__all__ = ["BatchObserver"]


class BatchObserver(Protocol):
    """Observer that the batcher reports to."""

    def worked(self, seconds: float) -> None:
        """Record the worker time of a run that succeeded, failed, or was abandoned."""

    def forward_done(self, *, rows: int, tokens: int) -> None:
        """Record a successful run of `rows` inputs and `tokens` padded tokens x draws."""

    def waited(self, seconds: float) -> None:
        """Record the seconds that a computed input waited."""

    def dropped(self, reason: DropReason) -> None:
        """Record an input that was dropped before it was computed."""

    def queue_changed(self, depth: int) -> None:
        """Record the number of waiting inputs."""
