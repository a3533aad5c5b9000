"""The image, compose and Kubernetes files agree with each other and with the server."""

import json
import os
import re
import shlex
import shutil
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy/k8s/base"


def load_yaml(path):
    return yaml.safe_load((ROOT / path).read_text())


def dockerfile():
    """(instruction, arguments) pairs, continuation lines joined, comments dropped."""
    lines = [x for x in (ROOT / "Dockerfile").read_text().splitlines() if not re.match(r"\s*#", x)]
    joined = re.sub(r"\\\n", " ", "\n".join(lines))
    return [tuple(line.split(maxsplit=1)) for line in joined.splitlines() if line.strip()]


def final_stage():
    instructions = dockerfile()
    start = max(i for i, (name, _) in enumerate(instructions) if name == "FROM")
    return instructions[start:]


def last(name):
    return [arguments for instruction, arguments in final_stage() if instruction == name][-1]


def image_env():
    pairs = [a for name, arguments in final_stage() if name == "ENV" for a in shlex.split(arguments)]
    return dict(pair.split("=", 1) for pair in pairs)


def config_map():
    lines = (BASE / "settings.env").read_text().splitlines()
    return dict(x.split("=", 1) for x in lines if x and not x.startswith("#"))


def compose_service(name="blora"):
    return load_yaml("deploy/compose.yaml")["services"][name]


ENVIRONMENTS = {
    "image": dict,
    "compose": lambda: compose_service()["environment"],
    "kubernetes": config_map,
}


@pytest.fixture
def settings_in(monkeypatch):
    """The server's settings as it would read them in the named environment."""
    from blora.server.settings import Settings

    def read(name):
        for key in [k for k in os.environ if k.startswith("BLORA_")]:
            monkeypatch.delenv(key)
        for key, value in (image_env() | ENVIRONMENTS[name]()).items():
            if key.startswith("BLORA_"):
                monkeypatch.setenv(key, value)
        return Settings()

    return read


def pod_spec():
    return load_yaml("deploy/k8s/base/deployment.yaml")["spec"]["template"]["spec"]


def container():
    (only,) = pod_spec()["containers"]
    return only


# Settings


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_variable_is_read(name):
    from blora.server.settings import Settings

    settings = {f"BLORA_{field.upper()}" for field in Settings.model_fields}
    used = {k for k in image_env() | ENVIRONMENTS[name]() if k.startswith("BLORA_")}
    # The few that are no settings are read by name: BLORA_CACHE_DIR works without a server too.
    source = "".join(p.read_text() for d in ("blora", "server") for p in (ROOT / d).rglob("*.py"))
    assert {k for k in used - settings if f'"{k}"' not in source} == set()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_value_is_accepted(name, settings_in):
    settings = settings_in(name)
    assert settings.host == "0.0.0.0"
    assert [(a.name, str(a.path)) for a in settings.adapter_sources] == [
        (name, f"/adapters/{name}") for name in ("triage", "triage.urgent", "triage.mood")
    ]
    assert settings.default_adapter == "triage"


def test_the_docs_replace_the_demos_default_where_they_replace_its_adapters():
    passages = re.split(r"\n\n|```", (ROOT / "docs/deploy.md").read_text())
    replaced = [passage for passage in passages if re.search(r"BLORA_ADAPTERS=\w", passage)]
    assert replaced
    for passage in replaced:
        names = re.findall(r"(\w+)=", re.search(r"BLORA_ADAPTERS=(\S+)", passage)[1])
        assert re.search(r"BLORA_DEFAULT_ADAPTER=(\w+)", passage)[1] in names


def test_the_config_map_has_no_quotes():
    # kustomize keeps them as part of the value.
    assert not [v for v in config_map().values() if v[:1] in "\"'"]


# Probes and ports


def test_probes_ask_the_right_endpoints():
    probes = {k: v["httpGet"]["path"] for k, v in container().items() if k.endswith("Probe")}
    assert probes == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    assert json.loads(last("HEALTHCHECK").split("CMD")[1])[-1] == "/livez"
    assert compose_service()["healthcheck"]["test"][-1] == "/readyz"


def test_ports_agree(settings_in):
    port = settings_in("kubernetes").port
    assert int(last("EXPOSE")) == port
    ports = {entry["name"]: entry["containerPort"] for entry in container()["ports"]}
    assert ports == {"http": port, "metrics": settings_in("kubernetes").metrics_port}
    probes = [v["httpGet"]["port"] for k, v in container().items() if k.endswith("Probe")]
    (service_port,) = load_yaml("deploy/k8s/base/service.yaml")["spec"]["ports"]
    assert {*probes, service_port["targetPort"]} == {"http"}
    assert compose_service()["ports"][0].endswith(f":{port}")


def test_prometheus_scrapes_the_server(settings_in):
    (job,) = load_yaml("deploy/prometheus.yml")["scrape_configs"]
    (static,) = job["static_configs"]
    (target,) = static["targets"]
    host, port = target.split(":")
    assert host in load_yaml("deploy/compose.yaml")["services"]
    assert int(port) == settings_in("compose").metrics_port
    assert job.get("metrics_path", "/metrics") == "/metrics"
    assert all(port not in published for published in compose_service()["ports"])


def test_service_variables_cannot_override_settings():
    # A Service named blora injects BLORA_PORT=tcp://... into every pod that allows it.
    assert pod_spec()["enableServiceLinks"] is False


# Draining


def test_compose_grace_period_outlasts_the_drain(settings_in):
    settings = settings_in("compose")
    grace_s = int(re.fullmatch(r"(\d+)s", compose_service()["stop_grace_period"])[1])
    assert grace_s >= settings.drain_delay_s + settings.drain_timeout_s + 8


@pytest.mark.parametrize("name", ["compose", "kubernetes"])
def test_an_accepted_request_can_finish_while_draining(name, settings_in):
    settings = settings_in(name)
    assert settings.drain_timeout_s >= settings.timeout_s


def test_the_server_gets_the_signal():
    assert json.loads(last("ENTRYPOINT")) == ["blora", "serve"]


# Privileges


def test_nothing_runs_as_root():
    uid = int(last("USER").split(":")[0])
    assert uid > 0
    assert pod_spec()["securityContext"]["runAsNonRoot"] is True
    assert pod_spec()["securityContext"]["runAsUser"] == uid
    assert pod_spec()["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert pod_spec()["automountServiceAccountToken"] is False


def test_compose_services_are_confined():
    for service in load_yaml("deploy/compose.yaml")["services"].values():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert "no-new-privileges:true" in service["security_opt"]
        assert {"cpus", "mem_limit"} <= set(service)


def test_home_is_the_one_writable_folder():
    (mount,) = container()["volumeMounts"]
    (tmpfs,) = compose_service()["tmpfs"]
    assert image_env()["HOME"] == mount["mountPath"] == tmpfs.split(":")[0] == "/tmp"


# Images


def test_images_are_pinned_and_are_this_version():
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert container()["image"] == compose_service()["image"] == f"blora:{version}"
    assert compose_service()["build"]["args"]["VERSION"] == version
    arguments = dict(a.split("=", 1) for name, a in dockerfile() if name == "ARG" and "=" in a)
    bases = [arguments["PYTHON_IMAGE"], compose_service("prometheus")["image"]]
    for image in bases:
        assert re.search(r":v?\d+\.\d+\.\d+", image), image
    assert {a.split()[0] for name, a in dockerfile() if name == "FROM"} == {"${PYTHON_IMAGE}"}


def test_what_the_image_copies_is_in_the_build_context():
    allowed = {x[1:] for x in (ROOT / ".dockerignore").read_text().splitlines() if x.startswith("!")}
    for name, arguments in dockerfile():
        if name == "COPY" and "--from" not in arguments:
            sources = [a for a in arguments.split()[:-1] if not a.startswith("--") and a != "."]
            assert set(sources) <= allowed
            assert all((ROOT / source).exists() for source in sources)


def test_the_cluster_has_the_same_alerts():
    rule = load_yaml("deploy/k8s/components/monitoring/prometheusrule.yaml")
    assert rule["spec"] == load_yaml("deploy/alerts.yml")


@pytest.mark.parametrize(
    ("file", "change", "check"),
    [
        ("deploy/k8s/base/deployment.yaml", ("containerPort: 8000", "containerPort: 8080"), "ports_agree"),
        ("deploy/k8s/base/service.yaml", ("targetPort: http", "targetPort: web"), "ports_agree"),
        ("deploy/k8s/base/deployment.yaml", ("path: /readyz", "path: /livez"), "probes"),
        ("deploy/alerts.yml", ("for: 2m", "for: 3m"), "same_alerts"),
        ("Dockerfile", ("EXPOSE 8000", "EXPOSE 80"), "ports_agree"),
    ],
)
def test_a_changed_port_probe_or_alert_is_noticed(tmp_path, monkeypatch, settings_in, file, change, check):
    checks = {
        "ports_agree": lambda: test_ports_agree(settings_in),
        "probes": test_probes_ask_the_right_endpoints,
        "same_alerts": test_the_cluster_has_the_same_alerts,
    }
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    shutil.copy(ROOT / "Dockerfile", tmp_path)
    checks[check]()
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    monkeypatch.setitem(globals(), "BASE", tmp_path / "deploy/k8s/base")
    checks[check]()
    text = (tmp_path / file).read_text()
    assert change[0] in text
    (tmp_path / file).write_text(text.replace(*change))
    with pytest.raises(AssertionError):
        checks[check]()
