"""OpenTelemetry traces of requests and their stages, without any text of requests."""

import asyncio
import threading
import time
from contextlib import suppress
from typing import Any

from fastapi import FastAPI
from opentelemetry.trace import NoOpTracerProvider, Tracer

from blora.errors import ConfigError, install_hint
from blora.server.monitoring.build import Build

__all__ = ["Traces", "record_stages"]

# Paths without traces: probes and scrapes would outnumber all other requests.
_UNTRACED = "livez,readyz,metrics"
# Seconds for sending the remaining spans when the server stops.
_LAST_SEND_S = 2.0


class Traces:
    """Tracer of requests, which sends spans if there is a collector.

    A request continues the trace of its `traceparent` header (W3C Trace Context).

    Args:
        endpoint: the collector's address for OTLP over HTTP, such as http://collector:4318; None for no traces.
        build: the running build.

    Raises:
        ConfigError: if the extra `otel` is not installed.
    """

    def __init__(self, endpoint: str | None, build: Build) -> None:
        self._provider = None if endpoint is None else _exporting(endpoint, build)
        self.tracer: Tracer = (self._provider or NoOpTracerProvider()).get_tracer("blora")

    def attach(self, app: FastAPI) -> None:
        """Put a span around each request of an app."""
        if self._provider is not None:
            from opentelemetry.instrumentation.asgi import OpenTelemetryMiddleware

            app.add_middleware(
                OpenTelemetryMiddleware,
                tracer_provider=self._provider,
                excluded_urls=_UNTRACED,
                exclude_spans=["receive", "send"],
            )

    async def close(self) -> None:
        """Send the remaining spans, for at most `_LAST_SEND_S` seconds."""
        if self._provider is None:
            return
        sent, loop = asyncio.Event(), asyncio.get_running_loop()
        provider = self._provider

        def send() -> None:
            provider.shutdown()
            with suppress(RuntimeError):  # the event loop has ended
                loop.call_soon_threadsafe(sent.set)

        # Not an executor's thread, because the process would wait for it.
        threading.Thread(target=send, daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(_LAST_SEND_S):
                await sent.wait()


def record_stages(tracer: Tracer, *, queue_s: float, compute_s: float) -> None:
    """Add spans for an input's wait and its forward pass, which has just ended, below the current span."""
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
            f"--otlp-endpoint needs the package opentelemetry: {install_hint('otel')}, or leave it out"
        ) from exc
    resource = Resource.create(
        {"service.name": "blora", "service.version": build.version, "vcs.ref.head.revision": build.revision}
    )
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint.rstrip("/") + "/v1/traces")))
    return provider
