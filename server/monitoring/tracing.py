"""Where the time of a request went, for an OpenTelemetry collector; never what was asked."""

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from opentelemetry.trace import NoOpTracerProvider, Tracer

from blora.errors import ConfigError
from blora.server.monitoring.build import Build

__all__ = ["Traces", "record_stages"]

# Probes and scrapes would drown the rest.
_UNTRACED = "livez,readyz,metrics"


class Traces:
    """Spans of every request, if there is a collector to send them to.

    A request continues the trace that its `traceparent` header names; see the W3C's Trace Context.

    Args:
        endpoint: the collector's address for OTLP over HTTP, such as http://collector:4318; None: nothing is traced.
        build: what runs.

    Raises:
        ConfigError: if the extra is not installed.
    """

    def __init__(self, endpoint: str | None, build: Build) -> None:
        self._provider = None if endpoint is None else _exporting(endpoint, build)
        self.tracer: Tracer = (self._provider or NoOpTracerProvider()).get_tracer("blora")

    def attach(self, app: FastAPI) -> None:
        """Puts a span around each of the app's requests."""
        if self._provider is not None:
            from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

            app.add_middleware(
                OpenTelemetryMiddleware,
                tracer_provider=self._provider,
                excluded_urls=_UNTRACED,
                exclude_spans=["receive", "send"],
            )

    async def close(self, timeout_s: float = 2.0) -> None:
        """Sends what has not been sent, as far as it can be in so many seconds."""
        if self._provider is None:
            return
        sent, loop = asyncio.Event(), asyncio.get_running_loop()
        provider = self._provider

        def send() -> None:
            provider.shutdown()
            with suppress(RuntimeError):  # nobody waits any more
                loop.call_soon_threadsafe(sent.set)

        # Not an executor's thread, for which the process would wait.
        threading.Thread(target=send, daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await sent.wait()


def record_stages(tracer: Tracer, *, queue_s: float, compute_s: float) -> None:
    """Spans of an input's wait and of its forward pass, which has just ended, inside the current one."""
    ended = time.time_ns()
    computing = ended - int(1e9 * compute_s)
    waiting = computing - int(1e9 * queue_s)
    tracer.start_span("queue", start_time=waiting).end(computing)
    tracer.start_span("forward", start_time=computing).end(ended)


def _exporting(endpoint: str, build: Build) -> Any:
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as exc:
        raise ConfigError(
            "--otlp-endpoint needs the packages that send traces: install them with `pip install 'blora[otel]'`, or "
            "leave it out"
        ) from exc
    resource = Resource.create(
        {"service.name": "blora", "service.version": build.version, "vcs.ref.head.revision": build.revision}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")))
    return provider
