"""ServerMetrics on a separate port, and no longer on the port for questions."""

import re
import socket

import httpx
import pytest

from benchmarks.server_process import free_port
from blora.server.commands.serve import main
from blora.server.engines.protocol import Loaded
from blora.server.monitoring.build import Build
from blora.server.monitoring.metrics import ServerMetrics
from tests.server.commands.test_serve import SelfEndingEngine, serve_with
from tests.server.fakes import FakeEngine, running


class AskingEngine(SelfEndingEngine):
    """Engine that asks both ports for every path, once the server listens."""

    def __init__(self, **ports: int) -> None:
        super().__init__()
        self.ports = ports
        self.statuses: dict[tuple[str, str], int] = {}

    async def load(self) -> Loaded:
        async with httpx.AsyncClient() as client:
            for name, port in self.ports.items():
                for path in ("/metrics", "/livez", "/openapi.json", "/no-such-path"):
                    answer = await client.get(f"http://127.0.0.1:{port}{path}")
                    self.statuses[name, path] = answer.status_code
        return await super().load()


def test_each_port_has_what_is_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = AskingEngine(questions=free_port(), metrics=free_port())
    serve_with(monkeypatch, engine)
    ports = ["--port", str(engine.ports["questions"]), "--metrics-port", str(engine.ports["metrics"])]
    assert main([*ports, "--default-adapter", "triage"]) == 0
    assert {key for key, status in engine.statuses.items() if status == 200} == {
        ("questions", "/livez"),
        ("questions", "/openapi.json"),
        ("metrics", "/metrics"),
    }
    assert set(engine.statuses.values()) == {200, 404}


@pytest.mark.parametrize(("metrics_port", "status"), [(0, 200), (9464, 404)])
async def test_the_port_of_the_questions_has_them_only_if_they_have_no_other(metrics_port: int, status: int) -> None:
    async with running(FakeEngine(), metrics_port=metrics_port) as server:
        assert (await server.client.get("/metrics")).status_code == status


async def test_a_question_on_the_metrics_port_is_refused_like_any_other_path(engine: FakeEngine) -> None:
    async with running(engine, metrics_port=9464) as server:
        question = {"prompt": "p=0.9", "adapter": "triage"}
        answer = await server.client.post("http://test:9464/v1/predict", json=question)
        assert (answer.status_code, answer.json()["error"]["code"]) == (404, "not_found")
        assert (await server.client.get("http://test:9464/metrics")).status_code == 200


def test_a_port_in_use_gives_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    serve_with(monkeypatch, FakeEngine())
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert main(["--port", "0", "--metrics-port", str(port), "--log-level", "warning"]) == 2
    assert re.fullmatch(
        f"blora serve: cannot listen on 127.0.0.1 port {port} .*in use.*: choose another --host or --metrics-port\n",
        capsys.readouterr().err,
    )


def test_the_port_of_the_questions_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--port", "8000", "--metrics-port", "8000"]) == 2
    assert "--metrics-port and --port are both 8000" in capsys.readouterr().err


def test_the_process_is_measured_and_no_series_tells_of_its_own_start() -> None:
    rendered = ServerMetrics(Build.current()).render().decode()
    assert "process_resident_memory_bytes" in rendered
    assert "process_start_time_seconds" in rendered
    assert "_created" not in rendered
