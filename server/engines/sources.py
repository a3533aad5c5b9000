"""The adapters that the settings name, as folders on this machine."""

from pathlib import Path

from blora.hub.fetch import local_folder
from blora.server.settings import Settings

__all__ = ["local_adapters"]


def local_adapters(settings: Settings) -> list[tuple[Path, str | None]]:
    """Return each adapter's folder and the name to serve it under, None for the folder's; fetch those of the hub.

    Raises:
        AdapterError: if an adapter of the hub cannot be fetched.
    """
    return [(local_folder(source.path), source.name) for source in settings.adapter_sources]
