"""`blora serve`: its output and its exit codes."""

import asyncio
import gc
import json
import re
import shlex
import signal
import socket
import subprocess
import sys
from pathlib import Path

import httpx
import pytest

from benchmarks.faults.tiny_server import tiny_server
from blora.decision.abstention import Policy
from blora.errors import AdapterError
from blora.server import app as app_module
from blora.server.commands.serve import SUMMARY, _listen, main
from blora.server.engines.protocol import Loaded
from blora.server.keys import line_of
from blora.server.settings import Settings
from tests.server.fakes import OPEN_DIGEST, FakeEngine, handle


class SelfEndingEngine(FakeEngine):
    """Engine that sends SIGTERM to this process a moment after loading, when the server has its handler."""

    async def load(self) -> Loaded:
        loaded = await super().load()
        asyncio.get_running_loop().call_later(0.3, signal.raise_signal, signal.SIGTERM)
        return loaded


def serve_with(monkeypatch: pytest.MonkeyPatch, engine: FakeEngine) -> None:
    create_app = app_module.create_app
    monkeypatch.setattr(app_module, "create_app", lambda settings: create_app(settings, engine))


def test_once_ready_it_prints_a_line_to_paste_and_a_signal_ends_it_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_with(monkeypatch, SelfEndingEngine())
    assert main(["--port", "0", "--default-adapter", "triage"]) == 0
    printed = capsys.readouterr().err
    [line] = re.findall(r"^  (curl .*)$", printed, re.MULTILINE)
    words = shlex.split(line)
    assert re.fullmatch(r"http://127\.0\.0\.1:[1-9]\d+/v1/predict", words[2])
    assert json.loads(words[-1]).keys() == {"adapter", "prompt"}


def test_once_ready_what_was_loaded_is_left_out_of_garbage_collections(monkeypatch: pytest.MonkeyPatch) -> None:
    serve_with(monkeypatch, SelfEndingEngine())
    gc.unfreeze()
    try:
        assert main(["--port", "0", "--default-adapter", "triage"]) == 0
        assert gc.get_freeze_count() > 10_000
    finally:
        gc.unfreeze()


def test_the_line_has_choices_where_the_adapter_has_none(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    serve_with(monkeypatch, SelfEndingEngine(handles=(handle("open", OPEN_DIGEST),)))
    assert main(["--port", "0", "--host", "0.0.0.0"]) == 0
    [line] = re.findall(r"^  (curl .*)$", capsys.readouterr().err, re.MULTILINE)
    assert "http://127.0.0.1:" in line
    assert json.loads(shlex.split(line)[-1])["choices"] == ["yes", "no"]


def test_the_line_has_the_key_that_the_server_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    serve_with(monkeypatch, SelfEndingEngine())
    (tmp_path / "keys").write_text(line_of("shop", "predict", "key") + "\n")
    assert main(["--port", "0", "--default-adapter", "triage", "--api-keys", str(tmp_path / "keys")]) == 0
    [line] = re.findall(r"^  (curl .*)$", capsys.readouterr().err, re.MULTILINE)
    assert ' -H "authorization: Bearer $BLORA_API_KEY" ' in line  # in quotes in which a shell puts the variable's value


def test_without_an_adapter_the_line_loads_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    serve_with(monkeypatch, SelfEndingEngine(handles=()))
    assert main(["--port", "0", "--adapter-root", str(tmp_path)]) == 0
    printed = capsys.readouterr().err
    assert f"No adapter is loaded yet. Load one from below {tmp_path}" in printed
    [line] = re.findall(r"^  (curl .*)$", printed, re.MULTILINE)
    assert json.loads(shlex.split(line)[-1]).keys() == {"name", "path"}


def test_an_adapter_that_does_not_load_gives_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    error = AdapterError("got adapter /no/where, expected an existing directory")
    serve_with(monkeypatch, FakeEngine(load_error=error))
    assert main(["--port", "0", "--log-level", "warning"]) == 2
    assert capsys.readouterr().err == f"blora serve: {error}\n"


def test_what_it_says_until_it_is_ready_is_little(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    held = handle("triage", OPEN_DIGEST, policy=Policy(min_confidence=0.5))
    serve_with(monkeypatch, SelfEndingEngine(handles=(held,)))
    assert main(["--port", "0", "--default-adapter", "triage"]) == 0
    before, _ = capsys.readouterr().err.split("Ready. ")
    [line] = before.splitlines()
    assert "Loading base model embedded, to serve it on 127.0.0.1 port" in line


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--port", "http"], "--port: .*integer"),
        (["--timeout-s", "-1"], "--timeout-s: .*greater than 0"),
        (["--log-level", "loud"], "--log-level: .*debug"),
        (["--max-queue-tokens", "5"], "got --max-queue-tokens 5, expected at least --max-batch-tokens 4096.*"),
        (["--feedback-redis-password-file", "x"], "--feedback-redis-password-file needs --feedback-redis, .*"),
        (["--api-keys", "/no/where"], "Key file /no/where cannot be read: .*"),
        (["--host", "256.0.0.1"], "cannot listen on 256.0.0.1 port 8000 .*"),
    ],
)
def test_a_bad_setting_gives_one_line(flags: list[str], line: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    assert re.fullmatch(f"blora serve: {line}.*\n", capsys.readouterr().err)


def test_an_unknown_flag_gives_the_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--no-such-flag", "1"])
    assert info.value.code == 2
    assert "unrecognized arguments: --no-such-flag" in capsys.readouterr().err


def test_help_tells_of_every_setting(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as info:
        main(["--help"])
    assert info.value.code == 0
    told = capsys.readouterr().out
    assert all(f"--{name.replace('_', '-')}" in told for name in Settings.model_fields)


def test_a_port_in_use_gives_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", str(port)]) == 2
    line = capsys.readouterr().err
    assert re.fullmatch(f"blora serve: cannot listen on 127.0.0.1 port {port} .*in use.*: choose another.*\n", line)


def test_where_log_lines_are_objects_the_reason_of_a_failed_start_is_one(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1]), "--log-format", "json"]) == 2
    [line] = capsys.readouterr().err.splitlines()
    assert json.loads(line)["message"].startswith("blora serve: cannot listen on 127.0.0.1 port ")


def test_the_module_imports_nothing_heavy_and_says_what_it_is() -> None:
    heavy = {"torch", "transformers", "fastapi", "uvicorn", "pydantic"}
    code = f"import sys, blora.server.commands.serve; print(sorted({heavy} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
    assert SUMMARY == "serve adapters over HTTP"


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
async def test_an_answer_does_not_wait_for_the_acknowledgement_of_its_headers(host: str) -> None:
    accepted: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def look(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("socket")
        accepted.set_result(bool(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)))
        writer.close()

    try:
        listener = _listen(host, 0)
    except OSError:
        pytest.skip(f"needs the loopback address {host}, which this machine does not have")
    async with await asyncio.start_server(look, sock=listener):
        _, writer = await asyncio.open_connection(*listener.getsockname()[:2])
        assert await accepted
        writer.close()


def test_a_header_does_not_forge_the_address_of_a_client(tmp_path: Path) -> None:
    with tiny_server(tmp_path) as server:
        refused = httpx.get(f"{server.url}/v1/adapters", headers={"x-forwarded-for": "203.0.113.66"})
        assert refused.status_code == 401
    [line] = [line for line in server.log.read_text().splitlines() if " unauthorized " in line]
    assert "peer=127.0.0.1 " in line
