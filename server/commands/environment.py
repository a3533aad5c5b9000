"""The variables BLORA_* of the environment: each is a setting, one that others of our programs read, or an error.

Kubernetes writes variables of its own into the containers beside a Service, unless `enableServiceLinks` is false: for
one named blora, BLORA_SERVICE_HOST, BLORA_SERVICE_PORT, BLORA_PORT=tcp://..., BLORA_PORT_80_TCP and the like; for one
named blora-x the same with BLORA_X. These are no error, and BLORA_PORT is no port to listen on then.
"""

import re
from collections.abc import Iterator, Mapping, MutableMapping
from difflib import get_close_matches

from blora.errors import ConfigError

__all__ = ["check_environment", "drop_service_port"]

PREFIX = "BLORA_"
# Read by the base model's cache, the build, the client and the tests of the image.
OTHERS = frozenset({"BLORA_CACHE_DIR", "BLORA_REVISION", "BLORA_URL", "BLORA_API_KEY", "BLORA_IMAGE"})

_SERVICE = re.compile(r"(BLORA(?:_[A-Z0-9_]+)?)_SERVICE_HOST")
_LINK = r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://.+")


def drop_service_port(environ: MutableMapping[str, str]) -> None:
    """Takes the BLORA_PORT of a Service away, which is no port to listen on."""
    port = f"{PREFIX}PORT"
    if f"{PREFIX}SERVICE_HOST" in environ and _ADDRESS.fullmatch(environ.get(port, "")):
        del environ[port]


def check_environment(environ: Mapping[str, str], settings: frozenset[str]) -> None:
    """Returns if every variable BLORA_* is known.

    Args:
        environ: the environment.
        settings: the names of all settings.

    Raises:
        ConfigError: naming each unknown variable and the known one that is most like it.
    """
    known = OTHERS | {f"{PREFIX}{name.upper()}" for name in settings}
    linked = set(_service_links(environ))
    ours = (name for name in environ if name.upper().startswith(PREFIX))
    unknown = sorted(name for name in ours if name.upper() not in known | linked)
    if unknown:
        listed = ", ".join(_with_likely(name, known) for name in unknown)
        raise ConfigError(f"unknown environment variables {listed}: correct or unset them")


def _service_links(environ: Mapping[str, str]) -> Iterator[str]:
    """The variables that Kubernetes makes of Services whose names begin with blora."""
    for service in filter(None, map(_SERVICE.fullmatch, environ)):
        link = re.compile(rf"{service[1]}_{_LINK}")
        yield from filter(link.fullmatch, environ)


def _with_likely(name: str, known: frozenset[str]) -> str:
    rests = [one.removeprefix(PREFIX) for one in sorted(known)]
    likely = get_close_matches(name.upper().removeprefix(PREFIX), rests, n=1)
    return f"{name} (did you mean {PREFIX}{likely[0]}?)" if likely else name
