"""`blora serve`: runs the server; a failed start ends with one line that says why."""

import asyncio
import gc
import json
import logging
import os
import signal
import socket
import sys
import threading
from contextlib import ExitStack, suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blora.server.commands.shutdown import DrainingServer
    from blora.server.monitoring.logs import Form
    from blora.server.prediction.service import Service
    from blora.server.settings import Settings

__all__ = ["SUMMARY", "main"]

SUMMARY = "serve adapters over HTTP"

logger = logging.getLogger(__name__)

# Interval of switches between threads. A forward pass releases the interpreter lock at each of a thousand operations;
# with Python's default of 5 ms it could wait that long at each of them while the event loop reads large bodies.
_SWITCH_S = 0.0005
_CANNOT_START = 2
# Exit status of a process that SIGTERM ends, as a shell reports it.
_TERMINATED = 128 + signal.SIGTERM


def main(argv: list[str]) -> int:
    """Serve until a signal.

    Args:
        argv: the flags, without the command's name.

    Returns:
        0 after a signal; 2 if the server could not start, with one line that says why. SIGTERM ends the process at
        once, with 143, before there is a server.
    """
    # Until the server has its own handler. As process 1 of a container, without any it would ignore SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(_TERMINATED))

    from pydantic import ValidationError

    from blora.errors import ConfigError
    from blora.server.commands.environment import check_environment, drop_service_ports
    from blora.server.commands.exposure import check_exposure
    from blora.server.commands.flags import read_flags
    from blora.server.commands.open_files import raise_soft_limit
    from blora.server.monitoring.logs import configure
    from blora.server.settings import Settings, first_problem

    drop_service_ports(os.environ)
    try:
        settings = read_flags(argv)
        check_environment(os.environ, frozenset(Settings.model_fields))
    except ValidationError as exc:
        return _give_up(first_problem(exc))
    except ConfigError as exc:
        return _give_up(str(exc))
    configure(settings.log_level, settings.log_format)
    ports = {"port": settings.port}
    if settings.metrics_port:
        ports["metrics-port"] = settings.metrics_port
    with ExitStack() as listening:
        listeners = []
        for flag, port in ports.items():
            try:
                listeners.append(listening.enter_context(_listen(settings.host, port)))
            except OSError as exc:
                return _give_up(
                    f"cannot listen on {settings.host} port {port} ({exc.strerror or exc}): choose another --host or "
                    f"--{flag}",
                    settings.log_format,
                )
        raise_soft_limit()
        sys.setswitchinterval(_SWITCH_S)
        before = threading.enumerate()
        try:
            check_exposure(settings, listeners[0].getsockname()[0], os.environ)
        except ConfigError as exc:
            return _give_up(str(exc), settings.log_format)
        code = asyncio.run(_serve(settings, listeners))

    from blora.server.commands.shutdown import leave

    return leave(code, besides=before)


def _give_up(message: str, form: "Form" = "text") -> int:
    if form == "json":  # every line is an object
        logger.error("blora serve: %s", message)
    else:
        sys.stderr.write(f"blora serve: {message}\n")
    return _CANNOT_START


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Explicit TCP: otherwise asyncio keeps Nagle's algorithm on, and each answer waits 40 ms for an acknowledgement.
    listener = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


async def _serve(settings: "Settings", listeners: list[socket.socket]) -> int:
    import torch
    import uvicorn

    from blora.errors import ConfigError
    from blora.server.app import create_app
    from blora.server.commands.shutdown import DrainingServer
    from blora.server.commands.trimming import trim_memory

    try:
        app = create_app(settings)
    except ConfigError as exc:
        return _give_up(str(exc), settings.log_format)
    # For this thread, whose computations are small: its own team of OpenMP threads would slow down every pass.
    torch.set_num_threads(1)
    service: Service = app.state.service
    host, port = listeners[0].getsockname()[:2]
    logger.info("Loading base model %s, to serve it on %s port %d", settings.base_model, host, port)
    # Without proxy headers: a client on this machine could otherwise name any address as its own.
    config = uvicorn.Config(app, log_config=None, access_log=False, proxy_headers=False, lifespan="on")
    server = DrainingServer(config, service)
    beside = [asyncio.create_task(_announce(service, server, port)), asyncio.create_task(trim_memory())]
    await server.serve(sockets=listeners)
    for task in beside:
        task.cancel()
    return _give_up(service.failure, settings.log_format) if service.failure else 0


async def _announce(service: "Service", server: "DrainingServer", port: int) -> None:
    await service.settled.wait()
    if service.failure:
        server.stop()
    else:
        # A full collection holds the event loop while it looks at every object: a quarter of a second for the model and
        # its libraries, which are never garbage.
        gc.collect()
        gc.freeze()
        example = _example(service, port)
        if service.settings.log_format == "json":
            logger.info("%s", example)
        else:
            with suppress(OSError):  # standard error may be closed
                sys.stderr.write(f"{example}\n")


def _example(service: "Service", port: int) -> str:
    """Return a shell command that asks the default adapter, or loads an adapter if there is none."""
    host = service.settings.host
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host)
    where = f"[{host}]" if ":" in host else host
    curl = f"curl -s http://{where}:{port}/v1"
    json_of = "-H 'content-type: application/json' -d"
    registry = service.predictor().registry
    handle = registry.default or next(iter(registry), None)
    if handle is None:
        body = {"name": "NAME", "path": "FOLDER"}
        return (
            f"No adapter is loaded yet. Load one from below {service.settings.adapter_root} with an admin's key:\n"
            f"  {curl}/adapters -H 'authorization: Bearer KEY' {json_of} '{json.dumps(body)}'"
        )
    question: dict[str, Any] = {"adapter": handle.name, "prompt": "Where is my order?"}
    if handle.config.prompt.choices is None:
        question["choices"] = ["yes", "no"]
    key = "" if service.settings.api_keys is None else ' -H "authorization: Bearer $BLORA_API_KEY"'
    page = f" Open http://{where}:{port}/ or try" if service.settings.playground else " Try"
    return f"Ready.{page}:\n  {curl}/predict{key} {json_of} '{json.dumps(question)}'"
