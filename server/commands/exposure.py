"""Whether a server that asks for no keys can be reached from elsewhere: what is said of it, and what is refused."""

import logging
from collections.abc import Mapping
from ipaddress import ip_address

from blora.errors import ConfigError
from blora.server.settings import Settings

__all__ = ["check_exposure"]

logger = logging.getLogger(__name__)

_CLIENTS = (
    "BLORA_API_KEY is set, which is the client's variable, and --api-keys is not. The server's variable is "
    "BLORA_API_KEYS, the file that `blora key` makes"
)


def check_exposure(settings: Settings, address: str, environ: Mapping[str, str]) -> None:
    """Warns of a server that anyone may ask, and returns unless keys were meant to be asked for.

    Args:
        settings: of the server.
        address: on which it listens.
        environ: the environment.

    Raises:
        ConfigError: if the environment has the client's variable, the server has no keys, and others can reach it.
    """
    if settings.api_keys is not None:
        return
    elsewhere = not ip_address(address.partition("%")[0]).is_loopback
    if "BLORA_API_KEY" in environ:
        if elsewhere:
            raise ConfigError(f"{_CLIENTS}. Set that, or unset BLORA_API_KEY")
        logger.warning("%s. This server asks for none", _CLIENTS)
    elif elsewhere:
        logger.warning(
            "Listening on %s without --api-keys: whoever can reach this address may ask, and see every adapter. Make a "
            "key with `blora key` and pass its file, or listen on 127.0.0.1",
            address,
        )
