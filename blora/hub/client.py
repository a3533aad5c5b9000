"""The hub's client. Credentials come from the environment variable HF_TOKEN alone; HF_ENDPOINT applies as usual."""

import os
import sys
from typing import TYPE_CHECKING

from blora.errors import ConfigError

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = [
    "TIMEOUT_S",
    "TOKEN",
    "hub_api",
    "hub_errors",
    "hub_token",
    "is_moved",
    "is_out_of_service",
    "is_private_answer",
    "why",
]

TOKEN = "HF_TOKEN"
TIMEOUT_S = 30.0
# Errors of the client that an answer of another form than the hub's causes.
_OF_ANSWERS = (KeyError, TypeError)
# Statuses of a hub that is down or overloaded, for which an earlier download may stand in.
_OUT_OF_SERVICE = frozenset({429, 500, 502, 503, 504})
# Statuses of a hub that tells only those with a token that a repository exists.
_PRIVATE = frozenset({401, 403, 404})
# Status of a commit whose parent is no longer the branch's last commit.
_MOVED = 412


def hub_token() -> str | None:
    """Return the token in HF_TOKEN without surrounding whitespace; None if the variable is empty or not set.

    Raises:
        ConfigError: if the token is blank or is not printable ASCII; the message does not show the token.
    """
    given = os.environ.get(TOKEN)
    if not given:
        return None
    token = given.strip()
    if not token or not token.isascii() or not token.isprintable():
        raise ConfigError(
            f"got {TOKEN} with a token of {len(token)} characters, expected printable ASCII characters: set it to the "
            "token as the hub shows it, or unset it"
        )
    return token


def hub_api() -> "HfApi":
    """Return a client of the hub that draws no progress bars, and knows no token but HF_TOKEN's.

    Raises:
        ConfigError: see `hub_token`.
    """
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # documented there

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # the user has not chosen
        disable_progress_bars()
    # False sends no token, where None would take one from the user's files.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=hub_token() or False, library_name="blora")


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the client: the hub's, those of the HTTP library, and those of answers it cannot read.

    Beside them the client raises OSError without a number, for a file of another size than the hub announced.
    """
    from huggingface_hub.errors import EntryNotFoundError, FileMetadataError, HfHubHTTPError, XetDownloadError

    of_http = HfHubHTTPError.__bases__[0]  # the client changes its HTTP library from release to release
    of_address = sys.modules[of_http.__module__].InvalidURL
    of_hub = (EntryNotFoundError, FileMetadataError, XetDownloadError)
    return (of_http, of_address, *of_hub, ValueError, RuntimeError, *_OF_ANSWERS)


def is_out_of_service(error: Exception) -> bool:
    """Return whether an error says that the hub cannot be reached or does not work, rather than that it refuses."""
    status = _status(error)
    return status is None or status in _OUT_OF_SERVICE


def is_private_answer(error: Exception) -> bool:
    """Return whether an error may mean that a repository is private."""
    return _status(error) in _PRIVATE


def is_moved(error: Exception) -> bool:
    """Return whether an error says that a branch has got another commit since it was looked up."""
    return _status(error) == _MOVED


def why(error: Exception) -> str:
    """Return the first line of the message of an error or its cause with the hub's answer; without one, its type."""
    if isinstance(error, _OF_ANSWERS):
        return "the answer is not a hub's"
    answered = _answered(error)
    return next(iter(str(answered).strip().splitlines()), "") or type(answered).__name__


def _status(error: Exception) -> int | None:
    return getattr(getattr(_answered(error), "response", None), "status_code", None)


def _answered(error: BaseException) -> BaseException:
    """Return the first error with the hub's answer among an error and its causes; without one, the error itself."""
    cause: BaseException | None = error
    while cause is not None and getattr(cause, "response", None) is None:
        cause = cause.__cause__
    return error if cause is None else cause
