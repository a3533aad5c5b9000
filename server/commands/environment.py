"""Checks of the environment variables BLORA_*: any that is neither a setting nor known otherwise is an error.

Unless `enableServiceLinks` is false, Kubernetes sets variables for each Service in the containers of its namespace: for
a Service named blora they are BLORA_SERVICE_HOST, BLORA_SERVICE_PORT, BLORA_PORT=tcp://..., BLORA_PORT_80_TCP and the
like, for a Service named blora-metrics the same with BLORA_METRICS. These are not errors, and such a BLORA_PORT or
BLORA_METRICS_PORT is not the setting.
"""

import re
from collections.abc import Iterator, Mapping, MutableMapping
from difflib import get_close_matches

from blora.errors import ConfigError

__all__ = ["check_environment", "drop_service_ports"]

PREFIX = "BLORA_"
# Variables of the base model's cache, the build, the client and the tests of the image.
OTHERS = frozenset({"BLORA_CACHE_DIR", "BLORA_REVISION", "BLORA_URL", "BLORA_API_KEY", "BLORA_IMAGE"})

_SERVICE = re.compile(r"(BLORA(?:_[A-Z0-9_]+)?)_SERVICE_HOST")
_LINK = r"(?:SERVICE_HOST|SERVICE_PORT(?:_[A-Z0-9_]+)?|PORT|PORT_[0-9]+_(?:TCP|UDP|SCTP)(?:_(?:PROTO|PORT|ADDR))?)"
_ADDRESS = re.compile(r"(?:tcp|udp|sctp)://.+")


def drop_service_ports(environ: MutableMapping[str, str]) -> None:
    """Remove each variable BLORA_..._PORT that Kubernetes has set to a Service's address."""
    for service in _services(environ):
        if _ADDRESS.fullmatch(environ.get(f"{service}_PORT", "")):
            del environ[f"{service}_PORT"]


def check_environment(environ: Mapping[str, str], settings: frozenset[str]) -> None:
    """Raise an error if a variable BLORA_* is unknown.

    Args:
        environ: the environment.
        settings: the names of all settings.

    Raises:
        ConfigError: with each unknown variable and the most similar known one.
    """
    known = OTHERS | {f"{PREFIX}{name.upper()}" for name in settings}
    linked = set(_service_links(environ))
    ours = (name for name in environ if name.upper().startswith(PREFIX))
    unknown = sorted(name for name in ours if name.upper() not in known | linked)
    if unknown:
        listed = ", ".join(_with_likely(name, known) for name in unknown)
        raise ConfigError(f"unknown environment variables {listed}: correct or unset them")


def _services(environ: Mapping[str, str]) -> list[str]:
    """Return the prefixes of the variables that Kubernetes sets for Services whose names begin with blora."""
    return [found[1] for found in filter(None, map(_SERVICE.fullmatch, environ))]


def _service_links(environ: Mapping[str, str]) -> Iterator[str]:
    """Yield the variables that Kubernetes sets for Services whose names begin with blora."""
    for service in _services(environ):
        link = re.compile(rf"{service}_{_LINK}")
        yield from filter(link.fullmatch, environ)


def _with_likely(name: str, known: frozenset[str]) -> str:
    rests = [one.removeprefix(PREFIX) for one in sorted(known)]
    likely = get_close_matches(name.upper().removeprefix(PREFIX), rests, n=1)
    return f"{name} (did you mean {PREFIX}{likely[0]}?)" if likely else name
