"""Progress bars: hidden for the first two seconds, and wherever standard error is not a terminal."""

import io
import sys

import pytest

from blora.training import progress
from blora.training.progress import rows_bar


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("stream", "delay_s", "shown"), [(Terminal, 0.0, True), (Terminal, 60.0, False), (io.StringIO, 0.0, False)]
)
def test_a_bar_shows_on_a_terminal_once_the_work_takes_long(
    stream: type[io.StringIO], delay_s: float, shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    written = stream()
    monkeypatch.setattr(sys, "stderr", written)
    monkeypatch.setattr(progress, "DELAY_S", delay_s)
    with rows_bar(4, "scoring") as bar:
        for _ in range(4):
            bar.update(1)
            bar.refresh() if delay_s == 0 else None
    assert ("scoring" in written.getvalue()) == shown


def test_the_delay_is_two_seconds() -> None:
    assert progress.DELAY_S == 2
