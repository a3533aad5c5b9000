"""Settings that httpx takes from environment variables: proxies and certificates."""

import os
import ssl
from collections.abc import Callable
from typing import TypeVar

import httpx

from blora.errors import ConfigError

__all__ = ["certificates", "through_proxies", "tls_fault"]

T = TypeVar("T")
# OpenSSL's reasons for an error, by its version, where the other side answers without TLS.
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE")
_PROXIES = ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")


def certificates() -> ssl.SSLContext:
    """Return a TLS context with the certificates that the environment names, or else those of the package certifi.

    Raises:
        ConfigError: if the files that the variables name cannot be used.
    """
    try:
        return httpx.create_ssl_context()
    except OSError as exc:  # ssl.SSLError too
        # Python names the file in the error for SSLKEYLOGFILE only.
        names = ("SSLKEYLOGFILE",) if exc.filename else ("SSL_CERT_FILE", "SSL_CERT_DIR")
        source = next((f"{name}={os.environ[name]}" for name in names if os.environ.get(name)), "the package certifi")
        raise ConfigError(
            f"got {source} ({exc}), expected PEM certificates that can be read (SSLKEYLOGFILE: a file that can be "
            "written): correct or unset the variable"
        ) from exc


def tls_fault(error: BaseException | None) -> str | None:
    """Return why no further try will set up TLS, if that is the cause of an error, and what to do; None if not."""
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError):
            return (
                f"has a certificate that is not trusted ({error.verify_message}): name its authority's certificate in "
                "SSL_CERT_FILE, or correct the address"
            )
        if isinstance(error, ssl.SSLError) and getattr(error, "reason", None) in _NO_TLS:
            return "does not speak TLS at this port: give an address with http://, or the port of its TLS"
        error = error.__cause__ or error.__context__
    return None


def through_proxies(opened: Callable[[], T]) -> T:
    """Return what the function returns, which sets up the proxies of the environment.

    Raises:
        ConfigError: if a proxy cannot be used; the message does not show its address, which may hold a password.
    """
    try:
        return opened()
    except (ImportError, ValueError, httpx.InvalidURL) as exc:  # a SOCKS proxy, another scheme, no address
        named = [name for name in os.environ if name.upper() in _PROXIES]
        kind = "a SOCKS proxy" if isinstance(exc, ImportError) else "an unusable address of a proxy"
        raise ConfigError(
            f"got {kind} from the environment ({', '.join(named)}), expected an HTTP proxy such as "
            "http://host:3128: correct or unset the variable, or, for a SOCKS proxy, pip install 'httpx[socks]'"
        ) from None  # the cause may show the password
