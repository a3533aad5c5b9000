"""Proxies and certificates that environment variables name."""

import ssl
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from blora import cli
from blora.client.asynchronous import AsyncClient
from blora.client.environment import through_proxies, tls_fault
from blora.client.errors import RefusedError
from blora.client.synchronous import Client
from blora.errors import ConfigError
from tests.blora.client.serving import serving


def refusing() -> None:
    raise ImportError("Using SOCKS proxy, but the 'socksio' package is not installed.")


def test_a_socks_proxy_without_its_package_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:1080")
    with pytest.raises(ConfigError, match=r"got a SOCKS proxy .*ALL_PROXY.*, expected an HTTP .* 'httpx\[socks\]'"):
        through_proxies(refusing)


@pytest.mark.parametrize("make", [Client, AsyncClient])
@pytest.mark.parametrize("variable", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
@pytest.mark.parametrize("value", ["ftp://x:secret@host:1", "http://x:sec/ret@host", "http://host:80o0"])
def test_an_unusable_proxy_is_refused_by_its_variable(
    make: Callable[[], object], variable: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(
        ConfigError, match=f"got an unusable .*{variable}.*, expected an HTTP proxy .*: correct"
    ) as info:
        make()
    assert "sec" not in str(info.value)
    assert info.value.__cause__ is None


def test_a_proxy_that_is_named_later_is_refused_at_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    with Client() as client:
        monkeypatch.setenv("HTTP_PROXY", "ftp://x:1")
        with pytest.raises(ConfigError, match="HTTP_PROXY"):
            client.predict("why?")


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSLKEYLOGFILE"])
def test_files_that_cannot_be_used_are_named(variable: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "none" / "file"
    monkeypatch.setenv(variable, str(path))
    with pytest.raises(ConfigError, match=f"got {variable}={path} .*, expected PEM certificates .*: correct"):
        Client()


def test_a_file_without_certificates_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "certificates.pem"
    path.write_text("none")
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    with pytest.raises(ConfigError, match=f"got SSL_CERT_FILE={path}"):
        Client()


@pytest.mark.parametrize("command", [["ask", "why?"], ["mcp"]])
def test_a_command_gives_one_line(
    command: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HTTP_PROXY", "ftp://x:1")
    assert cli.main(command) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert "HTTP_PROXY" in line


def test_a_server_without_tls_behind_an_https_address_is_told_at_once() -> None:
    began = time.monotonic()
    with serving() as server, pytest.raises(RefusedError) as info, Client(f"https://{server.url[7:]}") as client:
        client.predict("why?")
    assert str(info.value).endswith(
        " does not speak TLS at this port: give an address with http://, or the port of its TLS"
    )
    assert time.monotonic() - began < 10  # of a deadline of 30 s


def test_a_certificate_that_is_not_trusted_is_told_at_once() -> None:
    tries = []

    def script(request: httpx.Request) -> httpx.Response:
        tries.append(request)
        try:
            error = ssl.SSLCertVerificationError(1, "certificate verify failed")
            error.verify_message = "self-signed certificate"
            raise error
        except ssl.SSLError as exc:
            raise httpx.ConnectError(str(exc)) from exc

    with Client("https://test", transport=httpx.MockTransport(script)) as client, pytest.raises(RefusedError) as info:
        client.predict("why?")
    assert (
        "has a certificate that is not trusted (self-signed certificate): name its authority's certificate in"
        in str(info.value)
    )
    assert len(tries) == 1


def test_a_connection_that_ends_within_the_handshake_is_no_fault_of_tls() -> None:
    ended = httpx.ConnectError("ended")
    ended.__cause__ = ssl.SSLEOFError(8, "EOF occurred in violation of protocol")
    assert tls_fault(ended) is None
