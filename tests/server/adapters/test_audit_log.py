"""Log lines of changes of adapters: the requester and the outcome."""

import json
import logging
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest

from blora.server.monitoring.logs import configure
from tests.server.adapters.test_loader import ADMIN, digest_of, load, root
from tests.server.fakes import FakeEngine, Running, running

__all__ = ["root"]

Lines = Callable[[], list[dict[str, Any]]]


@pytest.fixture
def lines(capsys: pytest.CaptureFixture[str]) -> Lines:
    """Return the log lines about adapters since the last call."""

    def since() -> list[dict[str, Any]]:
        found = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
        dropped = ("time", "logger", "request_id")
        return [
            {name: value for name, value in line.items() if name not in dropped}
            for line in found
            if line["message"].startswith("adapter_")
        ]

    return since


@pytest.fixture
async def server(engine: FakeEngine, root: Path) -> AsyncIterator[Running]:
    async with running(engine, api_keys=root.parent / "keys", adapter_root=root) as up:
        up.client.headers.update(ADMIN)
        yield up


def line(message: str, *, level: str = "info", **fields: str) -> dict[str, Any]:
    return {"level": level, "message": message, "by": "ops", "adapter": "new", **fields}


async def test_each_change_tells_who_wanted_it(server: Running, lines: Lines) -> None:
    configure("info", "json")
    loading = line("adapter_loading", path="below/one")
    done = {"path": "below/one", "digest": digest_of("1")}
    await load(server)
    assert lines() == [loading, line("adapter_loaded", **done)]
    await load(server)
    assert lines() == [loading, line("adapter_kept", **done)]
    await server.client.put("/v1/adapters/new", json={"path": "below/two"})
    replaced = line("adapter_replaced", path="below/two", digest=digest_of("22"), was=digest_of("1"))
    assert lines() == [line("adapter_loading", path="below/two"), replaced]
    await server.client.delete("/v1/adapters/new")
    assert lines() == [line("adapter_unloaded", digest=digest_of("22"))]


async def test_each_refusal_tells_its_reason(server: Running, lines: Lines) -> None:
    configure("info", "json")
    await load(server, path="nothing")
    await load(server, path="../outside")
    await load(server, "no name")
    await server.client.delete("/v1/adapters/new")
    refused = [found for found in lines() if found["message"] == "adapter_refused"]
    assert [found["code"] for found in refused] == ["invalid_adapter", "forbidden", "invalid_value", "unknown_adapter"]
    assert {(found["by"], found["level"]) for found in refused} == {("ops", "warning")}
    assert all(found["reason"] for found in refused)


async def test_the_folder_watch_is_told_apart(engine: FakeEngine, root: Path, lines: Lines) -> None:
    configure("info", "json")
    async with running(engine, adapter_root=root / "below", adapter_poll_s=3600):
        pass
    found = {(each["message"], each["adapter"], each["by"]) for each in lines()}
    assert ("adapter_loaded", "one", "folder watch") in found
    assert ("adapter_refused", "greedy", "folder watch") in found


async def test_a_name_with_a_line_break_does_not_begin_a_line(
    engine: FakeEngine, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    forged = "x\n2026-01-01 00:00:00,000 INFO blora.server.adapters.loader: adapter_loaded by=root"
    (root / "below" / forged).mkdir()
    configure("info", "text")
    async with running(engine, adapter_root=root / "below", adapter_poll_s=3600):
        logging.getLogger("x").warning("got %s", forged)
    printed = capsys.readouterr().err.splitlines()
    assert not any(each.startswith("2026-01-01 00:00:00,000") for each in printed)
    assert sum(r"x\n2026-01-01" in each for each in printed) == 2
    assert not any("by=root" in each and "adapter_refused" not in each and "got x" not in each for each in printed)


@pytest.mark.parametrize("path", ["nothing", "below/greedy", "round", "x" * 5000, "a\0b", "below"])
async def test_no_error_tells_where_the_root_lies(server: Running, root: Path, path: str) -> None:
    message = (await load(server, path=path)).json()["error"]["message"]
    assert str(root) not in message
    assert str(root.resolve()) not in message
