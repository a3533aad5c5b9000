"""Log lines of refused requests: peer and path, one line each, without the key, at a limited rate."""

import json
import logging
from pathlib import Path
from typing import Any

import httpx
import pytest

from blora.server.errors import UnauthorizedError
from blora.server.keys import line_of
from blora.server.monitoring.audit_log import LINES_A_SECOND, AuditLog
from blora.server.monitoring.logs import configure
from tests.server.fakes import FakeEngine, running


async def refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], method: str, path: str, key: str | None
) -> dict[str, Any]:
    """Return the only line about a refused request."""
    (tmp_path / "keys").write_text(line_of("shop", "predict", "key-of-the-shop") + "\n")
    configure("warning", "json")
    async with running(FakeEngine(), api_keys=tmp_path / "keys", adapter_root=tmp_path) as server:
        transport = httpx.ASGITransport(server.app, client=("192.0.2.7", 4711))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            headers = {"authorization": f"Bearer {key}"} if key else {}
            await client.request(method, path, headers={**headers, "x-request-id": "mine"})
    [line] = [line for line in capsys.readouterr().err.splitlines() if "mine" in line]
    found: dict[str, Any] = json.loads(line)
    return found


@pytest.mark.parametrize("key", [None, "a-wrong-key"])
async def test_a_401_says_from_where_and_for_what(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], key: str | None
) -> None:
    line = await refused(tmp_path, capsys, "POST", "/v1/predict?key=a-wrong-key", key)
    assert (line["level"], line["message"], line["peer"]) == ("warning", "unauthorized", "192.0.2.7")
    assert (line["method"], line["path"]) == ("POST", "/v1/predict")
    assert "a-wrong-key" not in json.dumps(line)
    assert "client" not in line


async def test_a_403_says_whose_key_it_was(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    line = await refused(tmp_path, capsys, "DELETE", "/v1/adapters/triage", "key-of-the-shop")
    assert (line["message"], line["client"], line["peer"]) == ("forbidden", "shop", "192.0.2.7")
    assert (line["method"], line["path"]) == ("DELETE", "/v1/adapters/triage")
    assert "key-of-the-shop" not in json.dumps(line)


async def test_a_path_writes_no_line_of_its_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = "/v1/%0a2026-01-01%20INFO%20answered%20client=shop" + "x" * 1000
    line = await refused(tmp_path, capsys, "GET", path, None)
    assert line["path"].startswith("/v1/%0A2026-01-01%20INFO%20answered%20client%3Dshopxxx")
    assert len(line["path"]) == 200


async def test_what_an_admin_may_not_do_either_is_written_down(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "keys").write_text(line_of("ops", "admin", "key-of-ops") + "\n")
    configure("warning", "text")
    async with running(FakeEngine(), api_keys=tmp_path / "keys", adapter_root=tmp_path) as server:
        headers = {"authorization": "Bearer key-of-ops"}
        body = {"name": "x", "path": "../.."}
        assert (await server.client.post("/v1/adapters", json=body, headers=headers)).status_code == 403
    lines = capsys.readouterr().err.splitlines()
    [line] = [line for line in lines if " WARNING blora.server.monitoring.audit_log: forbidden request_id=" in line]
    assert line.endswith("peer=127.0.0.1 client=ops method=POST path=/v1/adapters")


def test_a_flood_is_counted_and_not_written_down(caplog: pytest.LogCaptureFixture) -> None:
    now = [100.0]
    audit_log = AuditLog(clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for second in range(3):
            now[0] = 100.0 + second
            for _ in range(1000):
                audit_log.refused(UnauthorizedError("no"), {"method": "GET", "path": "/", "client": None})
    fields = [record.__dict__["fields"] for record in caplog.records]
    assert len(fields) == 3 * LINES_A_SECOND
    assert [each.get("unlogged") for each in fields if each.get("unlogged")] == [1000 - LINES_A_SECOND] * 2
