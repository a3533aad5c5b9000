"""The hub's client. Credentials come from the environment variable HF_TOKEN alone; HF_ENDPOINT applies as usual."""

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["TIMEOUT_S", "TOKEN", "hub_api", "hub_errors", "is_out_of_service", "is_private_answer", "why"]

TOKEN = "HF_TOKEN"
TIMEOUT_S = 30.0
# Errors of the client that an answer of another form than the hub's causes.
_OF_ANSWERS = (KeyError, TypeError)
# Statuses of a hub that is down or overloaded, for which an earlier download may stand in.
_OUT_OF_SERVICE = frozenset({429, 500, 502, 503, 504})
# Statuses of a hub that tells only those with a token that a repository exists.
_PRIVATE = frozenset({401, 403, 404})


def hub_api() -> "HfApi":
    """Return a client of the hub that draws no progress bars, and knows no token but HF_TOKEN's."""
    from huggingface_hub import HfApi, constants
    from huggingface_hub.utils import disable_progress_bars  # type: ignore[attr-defined]  # documented there

    if constants.HF_HUB_DISABLE_PROGRESS_BARS is None:  # the user has not chosen
        disable_progress_bars()
    # False sends no token, where None would take one from the user's files.
    return HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=os.environ.get(TOKEN) or False, library_name="blora")


def hub_errors() -> tuple[type[Exception], ...]:
    """Return the errors of the client: the hub's, those of the HTTP library, and those of answers it cannot read."""
    from huggingface_hub.errors import EntryNotFoundError, FileMetadataError, HfHubHTTPError, XetDownloadError

    of_http = HfHubHTTPError.__bases__[0]  # the client changes its HTTP library from release to release
    return (of_http, EntryNotFoundError, FileMetadataError, XetDownloadError, ValueError, RuntimeError, *_OF_ANSWERS)


def is_out_of_service(error: Exception) -> bool:
    """Return whether an error says that the hub cannot be reached or does not work, rather than that it refuses."""
    status = _status(error)
    return status is None or status in _OUT_OF_SERVICE


def is_private_answer(error: Exception) -> bool:
    """Return whether an error may mean that a repository is private."""
    return _status(error) in _PRIVATE


def why(error: Exception) -> str:
    """Return the first line of an error's message, or the name of its type without one."""
    if isinstance(error, _OF_ANSWERS):
        return "the answer is not a hub's"
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__


def _status(error: Exception) -> int | None:
    return getattr(getattr(error, "response", None), "status_code", None)
