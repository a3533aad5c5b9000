"""Variables BLORA_* at the start: settings, variables of other programs and of Kubernetes, and misspelt ones."""

import re

import pytest

from blora.errors import ConfigError
from blora.server.commands.environment import OTHERS, check_environment, drop_service_ports
from blora.server.settings import Settings
from tests.server.commands.test_serve import SelfEndingEngine, main, serve_with
from tests.test_project import ROOT, source_files

SETTINGS = frozenset(Settings.model_fields)
# As `kubectl exec POD -- env` shows them beside Services named blora and blora-metrics.
SERVICE_LINKS = {
    "BLORA_SERVICE_HOST": "10.0.0.5",
    "BLORA_SERVICE_PORT": "80",
    "BLORA_SERVICE_PORT_HTTP": "80",
    "BLORA_PORT": "tcp://10.0.0.5:80",
    "BLORA_PORT_80_TCP": "tcp://10.0.0.5:80",
    "BLORA_PORT_80_TCP_PROTO": "tcp",
    "BLORA_PORT_80_TCP_PORT": "80",
    "BLORA_PORT_80_TCP_ADDR": "10.0.0.5",
    "BLORA_METRICS_SERVICE_HOST": "10.0.0.6",
    "BLORA_METRICS_SERVICE_PORT": "9464",
    "BLORA_METRICS_PORT": "tcp://10.0.0.6:9464",
    "BLORA_METRICS_PORT_9464_TCP": "tcp://10.0.0.6:9464",
    "BLORA_METRICS_PORT_9464_TCP_PROTO": "tcp",
    "BLORA_METRICS_PORT_9464_TCP_PORT": "9464",
    "BLORA_METRICS_PORT_9464_TCP_ADDR": "10.0.0.6",
}


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("BLORA_ADAPTORS", "BLORA_ADAPTERS"),
        ("BLORA_TIMEOUTS", "BLORA_TIMEOUT_S"),
        ("BLORA_API_KEYES", "BLORA_API_KEYS"),
        ("blora_adaptors", "BLORA_ADAPTERS"),
        ("BLORA_MAX_BATCH_TOKEN", "BLORA_MAX_BATCH_TOKENS"),
    ],
)
def test_a_misspelt_variable_stops_the_server_and_names_the_one_that_was_meant(
    name: str, meant: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(name, "1")
    assert main(["--port", "0"]) == 2
    expected = f"blora serve: unknown environment variables {name} (did you mean {meant}?): "
    assert capsys.readouterr().err == f"{expected}correct or unset them\n"


def test_all_unknown_ones_are_named() -> None:
    with pytest.raises(ConfigError, match=r"BLORA_QQQ, BLORA_TIMEOUT \(did you mean BLORA_TIMEOUT_S\?\)"):
        check_environment({"BLORA_TIMEOUT": "1", "BLORA_QQQ": "", "PATH": "/bin"}, SETTINGS)


@pytest.mark.parametrize(
    "name", [*(f"BLORA_{field.upper()}" for field in Settings.model_fields), *sorted(OTHERS), "blora_port"]
)
def test_known_ones_are_none(name: str) -> None:
    check_environment({name: "1"}, SETTINGS)


def test_every_variable_that_the_project_reads_is_known() -> None:
    """The sources, the build and the deployment read known variables only; tests and attacks may misspell."""
    files = [file for file in source_files() if not {"tests", "attacks", "environment.py"} & {*file.parts}] + [
        ROOT / "Makefile",
        ROOT / "Dockerfile",
    ]
    files += [*(ROOT / "deploy").rglob("*.y*ml"), *(ROOT / "deploy").rglob("*.env")]
    named = {name for file in files for name in re.findall(r"BLORA_[A-Z0-9_]*[A-Z0-9]", file.read_text())}
    assert {"BLORA_CACHE_DIR", "BLORA_ADAPTERS", "BLORA_REVISION"} <= named
    check_environment(dict.fromkeys(named | {"BLORA_SERVICE_HOST"}, ""), SETTINGS)


def test_services_of_kubernetes_are_no_error_and_no_port() -> None:
    environ = dict(SERVICE_LINKS)
    drop_service_ports(environ)
    assert environ.keys() == SERVICE_LINKS.keys() - {"BLORA_PORT", "BLORA_METRICS_PORT"}
    check_environment(environ, SETTINGS)


@pytest.mark.parametrize("name", ["BLORA_METRICS_PORTS", "BLORA_METRICS_HOST", "BLORA_PORT_80", "BLORA_OTHER_PORT"])
def test_what_only_looks_like_a_service_is(name: str) -> None:
    with pytest.raises(ConfigError, match=name):
        check_environment({**SERVICE_LINKS, name: "80"}, SETTINGS)


@pytest.mark.parametrize("name", ["BLORA_PORT", "BLORA_METRICS_PORT"])
def test_a_port_beside_a_service_is_kept(name: str) -> None:
    environ = {**SERVICE_LINKS, name: "9000"}
    drop_service_ports(environ)
    assert environ[name] == "9000"


@pytest.mark.parametrize("name", ["BLORA_PORT", "BLORA_METRICS_PORT"])
def test_an_address_in_the_place_of_a_port_is_kept_without_its_service(name: str) -> None:
    environ = {name: "tcp://10.0.0.5:80", "BLORA_OTHER_SERVICE_HOST": "10.0.0.7"}
    drop_service_ports(environ)
    assert environ[name] == "tcp://10.0.0.5:80"


def test_a_server_beside_such_services_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in SERVICE_LINKS.items():
        monkeypatch.setenv(name, value)
    serve_with(monkeypatch, SelfEndingEngine())
    assert main(["--port", "0", "--default-adapter", "triage"]) == 0
    assert "Ready." in capsys.readouterr().err
