"""`blora serve`: from flags to a running server, in one line where that is not to be."""

import asyncio
import json
import socket
import sys
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import ValidationError

    from blora.server.lifecycle import Service
    from blora.server.settings import Settings
    from blora.server.shutdown import DrainingServer

__all__ = ["SUMMARY", "main"]

SUMMARY = "serve adapters over HTTP"

_CANNOT_START = 2


def main(argv: list[str]) -> int:
    """Serves until a signal.

    Args:
        argv: the flags, without the command's name.

    Returns:
        0 after a signal; 2 if the server could not start, after one line that says why.
    """
    from pydantic import ValidationError
    from pydantic_settings import CliApp

    from blora.server.logs import configure
    from blora.server.settings import Settings

    try:
        settings = CliApp.run(Settings, cli_args=argv)
    except ValidationError as exc:
        return _give_up(_first_problem(exc))
    try:
        listener = _listen(settings.host, settings.port)
    except OSError as exc:
        return _give_up(
            f"got {settings.host} port {settings.port}, which cannot be listened on "
            f"({exc.strerror or exc}), expected a free one: choose another --host or --port"
        )
    configure(settings.log_level, settings.log_format)
    before = threading.enumerate()
    with listener:
        code = asyncio.run(_serve(settings, listener))

    from blora.server.shutdown import leave

    return leave(code, besides=before)


def _first_problem(exc: "ValidationError") -> str:
    problem = exc.errors(include_url=False)[0]
    where = "".join(f"--{str(part).replace('_', '-')}: " for part in problem["loc"][:1])
    return where + problem["msg"].removeprefix("Value error, ")


def _give_up(message: str) -> int:
    sys.stderr.write(f"blora serve: {message}\n")
    return _CANNOT_START


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
    except OSError:
        listener.close()
        raise
    return listener


async def _serve(settings: "Settings", listener: socket.socket) -> int:
    import uvicorn

    from blora.errors import ConfigError
    from blora.server.app import create_app
    from blora.server.shutdown import DrainingServer

    try:
        app = create_app(settings)
    except ConfigError as exc:
        return _give_up(str(exc))
    service: Service = app.state.service
    server = DrainingServer(uvicorn.Config(app, log_config=None, access_log=False, lifespan="on"), service)
    announcing = asyncio.create_task(_announce(service, server, listener.getsockname()[1]))
    await server.serve(sockets=[listener])
    announcing.cancel()
    return _give_up(service.failure) if service.failure else 0


async def _announce(service: "Service", server: "DrainingServer", port: int) -> None:
    await service.settled.wait()
    if service.failure:
        server.stop()
    else:
        with suppress(OSError):  # nobody reads it where nothing can be written
            sys.stderr.write(_example(service, port))


def _example(service: "Service", port: int) -> str:
    """A line to paste into a shell, for the adapter that answers by default; or for loading one."""
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
            f"  {curl}/adapters -H 'authorization: Bearer KEY' {json_of} '{json.dumps(body)}'\n"
        )
    question: dict[str, Any] = {"adapter": handle.name, "prompt": "Where is my order?"}
    if handle.config.prompt.choices is None:
        question["choices"] = ["yes", "no"]
    return f"Ready. Try:\n  {curl}/predict {json_of} '{json.dumps(question)}'\n"
