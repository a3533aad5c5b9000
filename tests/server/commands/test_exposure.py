"""Servers without API keys: warnings and refused starts."""

import logging
from pathlib import Path

import pytest

from blora.errors import ConfigError
from blora.server.commands.exposure import check_exposure
from blora.server.keys import line_of
from blora.server.settings import Settings
from tests.server.commands.test_serve import SelfEndingEngine, main, serve_with

NOBODYS = Settings()
WITH_KEYS = Settings(api_keys=Path("keys"))


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "192.0.2.7", "fe80::1%eth0"])
def test_an_address_that_others_reach_is_warned_of_once(address: str, caplog: pytest.LogCaptureFixture) -> None:
    check_exposure(NOBODYS, address, {})
    [record] = caplog.records
    assert record.levelno == logging.WARNING
    assert f"Listening on {address} without --api-keys" in record.message


@pytest.mark.parametrize("address", ["127.0.0.1", "127.0.0.2", "::1"])
def test_loopback_is_not(address: str, caplog: pytest.LogCaptureFixture) -> None:
    check_exposure(NOBODYS, address, {})
    assert not caplog.records


def test_with_keys_nothing_is_said(caplog: pytest.LogCaptureFixture) -> None:
    check_exposure(WITH_KEYS, "0.0.0.0", {"BLORA_API_KEY": "of a client"})
    assert not caplog.records


def test_the_clients_variable_in_the_place_of_the_servers_is_refused_where_others_reach_it(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with pytest.raises(
        ConfigError, match=r"BLORA_API_KEY, the client's variable, is set, .* The server's variable is BLORA_API_KEYS"
    ):
        check_exposure(NOBODYS, "0.0.0.0", {"BLORA_API_KEY": "/keys"})
    check_exposure(NOBODYS, "127.0.0.1", {"BLORA_API_KEY": "/keys"})
    assert "The server's variable is BLORA_API_KEYS" in caplog.text


def test_the_command_does_not_serve_the_world_by_a_slip_of_one_letter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    keys = tmp_path / "keys"
    keys.write_text(line_of("shop", "predict", "key") + "\n")
    monkeypatch.setenv("BLORA_API_KEY", str(keys))
    serve_with(monkeypatch, SelfEndingEngine())
    assert main(["--port", "0", "--host", "0.0.0.0"]) == 2
    assert capsys.readouterr().err.startswith("blora serve: BLORA_API_KEY, the client's variable, is set")
    monkeypatch.delenv("BLORA_API_KEY")
    assert main(["--port", "0", "--host", "0.0.0.0", "--default-adapter", "triage"]) == 0
    assert capsys.readouterr().err.count("without --api-keys") == 1
