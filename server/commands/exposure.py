"""Check for servers without API keys that other machines can reach."""

import logging
from collections.abc import Mapping
from ipaddress import ip_address

from blora.errors import ConfigError
from blora.server.settings import Settings

__all__ = ["check_exposure"]

logger = logging.getLogger(__name__)

_CLIENTS = (
    "BLORA_API_KEY, the client's variable, is set, but --api-keys is not. The server's variable is BLORA_API_KEYS, the "
    "file that `blora key` makes"
)


def check_exposure(settings: Settings, address: str, environ: Mapping[str, str]) -> None:
    """Warn if a server without keys is reachable from other machines; raise an error if keys were probably intended.

    Args:
        settings: the server's settings.
        address: the address that it listens on.
        environ: the environment.

    Raises:
        ConfigError: if BLORA_API_KEY is set, the server has no keys, and other machines can reach it.
    """
    if settings.api_keys is not None:
        return
    elsewhere = not ip_address(address.partition("%")[0]).is_loopback
    if "BLORA_API_KEY" in environ:
        if elsewhere:
            raise ConfigError(f"{_CLIENTS}. Set that, or unset BLORA_API_KEY")
        logger.warning("%s. This server accepts requests without a key", _CLIENTS)
    elif elsewhere:
        logger.warning(
            "Listening on %s without --api-keys: anyone who can reach this address can ask questions and see every "
            "adapter. Make a key with `blora key` and pass its file, or listen on 127.0.0.1",
            address,
        )
