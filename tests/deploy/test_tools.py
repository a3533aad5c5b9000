"""The lint and the health check beside the manifests."""

import http.server
import importlib.util
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BASE = ROOT / "deploy/k8s/base"


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
        (("replicas: 1", "replicas: two"), "replicas"),
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


def test_healthcheck_asks_the_default_port_beside_a_service_named_blora():
    assert "refused" in run_healthcheck("tcp://10.0.0.1:80").stderr


def run_healthcheck(port):
    # The proxy is unusable: the check passes only if it is not used.
    environment = os.environ | {"BLORA_PORT": str(port), "http_proxy": "http://127.0.0.1:1"}
    command = [sys.executable, str(ROOT / "deploy/healthcheck.py"), "/livez"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
