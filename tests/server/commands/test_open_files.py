"""The limit on open files: the number of connections, and the log when files run out."""

import asyncio
import logging
import resource
import subprocess
import sys

import pytest

from blora.server.commands.open_files import connections_that_fit, hush_accept_errors
from blora.server.monitoring.logs import ThrottledLogger


@pytest.fixture
def soft_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda which: (300, 300))


@pytest.mark.usefixtures("soft_limit")
def test_fewer_connections_are_served_where_files_are_few(caplog: pytest.LogCaptureFixture) -> None:
    assert connections_that_fit(1000) == 172
    assert "not 1000, because the process may open only 300 files" in caplog.text


@pytest.mark.usefixtures("soft_limit")
def test_what_fits_is_served_without_a_word(caplog: pytest.LogCaptureFixture) -> None:
    assert connections_that_fit(100) == 100
    assert caplog.text == ""


def test_the_soft_limit_is_raised_to_the_hard_one() -> None:
    code = (
        "import resource; from blora.server.commands.open_files import raise_soft_limit\n"
        "soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (200, hard)); raise_soft_limit()\n"
        "assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_thousand_warnings_a_second_are_one_line_a_second(caplog: pytest.LogCaptureFixture) -> None:
    now = 0.0
    seldom = ThrottledLogger(logging.getLogger("seldom"), clock=lambda: now)
    for i in range(2500):
        now = i / 1000
        seldom.warning("full")
    assert [record.getMessage() for record in caplog.records] == [
        "full",
        "full (999 more since the last such line)",
        "full (999 more since the last such line)",
    ]


async def test_accept_errors_are_one_line_and_other_errors_are_told_whole(caplog: pytest.LogCaptureFixture) -> None:
    loop = asyncio.new_event_loop()
    hush_accept_errors(loop)
    for _ in range(1000):
        exception = OSError(24, "Too many open files")
        loop.call_exception_handler({"message": "socket.accept() out of system resource", "exception": exception})
    assert [record.getMessage() for record in caplog.records] == [
        "Connections cannot be accepted: [Errno 24] Too many open files"
    ]
    loop.call_exception_handler({"message": "something else", "exception": ValueError("why")})
    assert "something else" in caplog.text
    loop.close()
