"""The image, compose and Kubernetes files agree with each other and with the server."""

import http.server
import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
import threading
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


def gpu_config_map():
    generator = load_yaml("deploy/k8s/overlays/gpu/kustomization.yaml")["configMapGenerator"][0]
    assert generator["behavior"] == "merge"
    return config_map() | dict(x.split("=", 1) for x in generator["literals"])


def compose_service(name="blora"):
    return load_yaml("deploy/compose.yaml")["services"][name]


ENVIRONMENTS = {
    "image": dict,
    "compose": lambda: compose_service()["environment"],
    "kubernetes": config_map,
    "kubernetes-gpu": gpu_config_map,
}


@pytest.fixture
def settings_in(monkeypatch):
    """The server's settings as it would read them in the named environment."""
    from server.settings import Settings

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
    from server.settings import Settings

    settings = {f"BLORA_{field.upper()}" for field in Settings.model_fields}
    used = {k for k in image_env() | ENVIRONMENTS[name]() if k.startswith("BLORA_")}
    # The few that are no settings are read by name: BLORA_CACHE_DIR works without a server too.
    source = "".join(p.read_text() for d in ("blora", "server") for p in (ROOT / d).rglob("*.py"))
    assert {k for k in used - settings if f'"{k}"' not in source} == set()


@pytest.mark.parametrize("name", ENVIRONMENTS)
def test_every_value_is_accepted(name, settings_in):
    settings = settings_in(name)
    assert settings.host == "0.0.0.0"
    assert [(a.name, str(a.path)) for a in settings.adapter_sources] == [("triage", "/adapters/triage")]


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
    (container_port,) = container()["ports"]
    assert container_port["containerPort"] == port
    probes = [v["httpGet"]["port"] for k, v in container().items() if k.endswith("Probe")]
    (service_port,) = load_yaml("deploy/k8s/base/service.yaml")["spec"]["ports"]
    assert {*probes, service_port["targetPort"]} == {container_port["name"]}
    assert compose_service()["ports"][0].endswith(f":{port}")


def test_prometheus_scrapes_the_server(settings_in):
    (job,) = load_yaml("deploy/prometheus.yml")["scrape_configs"]
    (static,) = job["static_configs"]
    (target,) = static["targets"]
    host, port = target.split(":")
    assert host in load_yaml("deploy/compose.yaml")["services"]
    assert int(port) == settings_in("compose").port
    annotations = load_yaml("deploy/k8s/base/deployment.yaml")["spec"]["template"]["metadata"]["annotations"]
    assert annotations == {
        "prometheus.io/scrape": "true",
        "prometheus.io/port": str(settings_in("kubernetes").port),
        "prometheus.io/path": job.get("metrics_path", "/metrics"),
    }


def test_service_variables_cannot_override_settings():
    # A Service named blora injects BLORA_PORT=tcp://... into every pod that allows it.
    assert pod_spec()["enableServiceLinks"] is False


# Draining


@pytest.mark.parametrize("name", ["kubernetes", "kubernetes-gpu"])
def test_grace_period_outlasts_the_drain(name, settings_in):
    settings = settings_in(name)
    pre_stop = container().get("lifecycle", {}).get("preStop", {})
    assert set(pre_stop) <= {"sleep"}, "the time an exec or httpGet hook takes is unknown here"
    drain_s = settings.drain_delay_s + settings.drain_timeout_s
    grace_s = pod_spec()["terminationGracePeriodSeconds"]
    assert grace_s > pre_stop.get("sleep", {}).get("seconds", 0) + drain_s


def test_compose_grace_period_outlasts_the_drain(settings_in):
    settings = settings_in("compose")
    grace_s = int(re.fullmatch(r"(\d+)s", compose_service()["stop_grace_period"])[1])
    assert grace_s > settings.drain_delay_s + settings.drain_timeout_s


@pytest.mark.parametrize("name", ["compose", "kubernetes", "kubernetes-gpu"])
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


def test_containers_are_confined():
    context = container()["securityContext"]
    assert context["readOnlyRootFilesystem"] is True
    assert context["allowPrivilegeEscalation"] is False
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert {"cpu", "memory"} <= set(container()["resources"]["limits"])
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
    assert f'org.opencontainers.image.version="{version}"' in last("LABEL")
    arguments = dict(a.split("=", 1) for name, a in dockerfile() if name == "ARG")
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


# The tools beside the manifests


def load_lint():
    spec = importlib.util.spec_from_file_location("deploy_lint", ROOT / "deploy/lint.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_lint_finds_nothing():
    assert load_lint().lint() == []


@pytest.mark.parametrize(
    ("change", "finding"),
    [
        (("replicas: 2", "replicas: two"), "replicas"),
        (("readinessProbe", "readynessProbe"), "readynessProbe"),
        (("kind: Deployment", "kind: Deploymint"), "Deploymint"),
    ],
)
def test_lint_finds_a_broken_manifest(tmp_path, change, finding):
    path = tmp_path / "deployment.yaml"
    text = (BASE / "deployment.yaml").read_text()
    assert change[0] in text
    path.write_text(text.replace(*change))
    assert finding in "\n".join(load_lint().lint_manifest(path))


def test_lint_finds_a_broken_dockerfile(tmp_path):
    path = tmp_path / "Dockerfile"
    path.write_text("FROM debian\n")
    assert "DL3006" in "\n".join(load_lint().lint_dockerfile(path))


def test_lint_reports_a_missing_tool(monkeypatch):
    lint = load_lint()
    monkeypatch.setattr(lint.shutil, "which", lambda *_, **__: None)
    assert "hadolint is missing" in "\n".join(lint.lint())


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1)])
def test_healthcheck_reports_the_status(status, code):
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status if self.path == "/livez" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        result = run_healthcheck(server.server_port)
        server.shutdown()
    assert result.returncode == code
    assert str(status) in result.stdout


def test_healthcheck_fails_without_a_server():
    with http.server.HTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler) as server:
        port = server.server_port
    assert run_healthcheck(port).returncode == 1


def run_healthcheck(port):
    # The proxy is unusable: the check passes only if it is not used.
    environment = os.environ | {"BLORA_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    command = [sys.executable, str(ROOT / "deploy/healthcheck.py"), "/livez"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
