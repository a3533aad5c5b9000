"""Files of the pages, with their paths in URLs. The pages load nothing from elsewhere."""

from dataclasses import dataclass
from importlib.resources import files

__all__ = ["PageFile", "page_files"]

_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
# Every other file is served as /web/NAME.
_PATHS = {"index.html": "/", "docs.html": "/docs"}


@dataclass(frozen=True, slots=True)
class PageFile:
    """Contents of a page's file, and its media type."""

    content: bytes
    media_type: str


def page_files() -> dict[str, PageFile]:
    """Return the files of all pages, by path in URLs."""
    folder = files("blora.server.web") / "static"
    return {
        _PATHS.get(file.name, f"/web/{file.name}"): PageFile(
            file.read_bytes(), _MEDIA_TYPES[file.name.rpartition(".")[2]]
        )
        for file in folder.iterdir()
    }
