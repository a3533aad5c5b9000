"""Traces sent to a real listening collector."""

import gzip
import json
import logging
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span

from blora.server.monitoring.logs import configure
from tests.server.fakes import FakeEngine, running

TRACE = "4bf92f3577b34da6a3ce929d0e0e4736"


class Collector:
    """Collector that keeps the received spans."""

    def __init__(self) -> None:
        self.spans: list[Span] = []
        self.bodies = b""
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                collector.bodies += body
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    for scope in resource.scope_spans:
                        collector.spans += scope.spans
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                pass

        self._server = HTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def named(self, name: str) -> Span:
        [span] = [span for span in self.spans if span.name == name]
        return span


@pytest.fixture
def collector() -> Iterator[Collector]:
    made = Collector()
    yield made
    made.close()


def attributes(span: Span) -> dict[str, object]:
    return {pair.key: getattr(pair.value, str(pair.value.WhichOneof("value"))) for pair in span.attributes}


async def test_a_request_is_a_span_of_the_callers_trace_with_its_stages_inside(
    engine: FakeEngine, collector: Collector
) -> None:
    async with running(engine, otlp_endpoint=collector.url) as server:
        headers = {"traceparent": f"00-{TRACE}-00f067aa0ba902b7-01"}
        await server.client.post("/v1/predict", json={"prompt": "my secret p=0.9"}, headers=headers)
        await server.client.get("/livez")
    request = collector.named("POST /v1/predict")
    predict, queue, forward = map(collector.named, ("predict", "queue", "forward"))
    assert {span.trace_id.hex() for span in collector.spans} == {TRACE}
    assert len(collector.spans) == 4  # a probe is none
    assert predict.parent_span_id == request.span_id
    assert queue.parent_span_id == forward.parent_span_id == predict.span_id
    assert predict.start_time_unix_nano <= forward.start_time_unix_nano
    assert queue.end_time_unix_nano == forward.start_time_unix_nano
    assert forward.end_time_unix_nano <= predict.end_time_unix_nano
    found = attributes(predict)
    assert found["blora.adapter"] == "triage"
    assert found["blora.abstained"] is False
    assert str(found["blora.digest"]).startswith("sha256:")
    assert b"secret" not in collector.bodies


async def test_a_refusal_is_a_failed_span_that_says_why(engine: FakeEngine, collector: Collector) -> None:
    async with running(engine, otlp_endpoint=collector.url) as server:
        await server.client.post("/v1/predict", json={"prompt": "UNPACKABLE my secret"})
    assert collector.named("predict").status.code == 2
    assert collector.named("predict").status.message == "invalid_prompt"
    assert b"secret" not in collector.bodies


async def test_a_log_line_names_the_trace(
    engine: FakeEngine, collector: Collector, capfd: pytest.CaptureFixture[str]
) -> None:
    configure("info", "json")
    async with running(engine, otlp_endpoint=collector.url) as server:
        await server.client.post("/v1/predict", json={"prompt": "x"})
    lines = map(json.loads, capfd.readouterr().err.splitlines())
    [answered] = [line for line in lines if line["message"] == "answered"]
    assert answered["trace_id"] == collector.named("predict").trace_id.hex()


async def test_a_collector_that_is_gone_costs_no_answer(engine: FakeEngine) -> None:
    logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)
    async with running(engine, otlp_endpoint="http://127.0.0.1:9") as server:
        assert (await server.client.post("/v1/predict", json={"prompt": "x"})).status_code == 200


async def test_without_a_collector_nothing_is_traced(engine: FakeEngine, capfd: pytest.CaptureFixture[str]) -> None:
    configure("info", "json")
    async with running(engine) as server:
        await server.client.post("/v1/predict", json={"prompt": "x"})
    assert "trace_id" not in capfd.readouterr().err
