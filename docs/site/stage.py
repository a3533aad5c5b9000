"""Stages the pages of the site: all of docs/, and README and its siblings, with links that hold within the site.

`python -m docs.site.stage` writes dist/docs, which mkdocs.yml names as its source.
"""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

__all__ = ["DOCS", "ROOT", "STAGED", "pages", "stage", "with_links"]

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
STAGED = ROOT / "dist" / "docs"
# Pages outside docs/, by their place in the repository, and their place in the site.
OUTSIDE = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "examples/triage/README.md": "triage.md",
}
MEDIA = {".svg", ".png", ".css"}

_FENCE = re.compile(r"^(```.*?^```[^\n]*\n)", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r'(\]\(|\bsrc="|\bsrcset=")([^)"\s#]+)')


def pages() -> dict[Path, Path]:
    """Return every page's file in the repository, and its place in the site."""
    inside = {page: page.relative_to(DOCS) for page in sorted(DOCS.rglob("*.md"))}
    return inside | {ROOT / name: Path(place) for name, place in OUTSIDE.items()}


def with_links(text: str, moved: Callable[[str], str]) -> str:
    """Return a page with each link's target moved; links within code and to other hosts stay.

    Args:
        text: the Markdown of the page.
        moved: the new target of a relative one, both without their anchors.
    """

    def link(found: re.Match[str]) -> str:
        before, target = found.groups()
        return found.group() if re.match(r"[a-z]+:", target) else before + moved(target)

    parts = _FENCE.split(text)
    return "".join(part if part.startswith("```") else _LINK.sub(link, part) for part in parts)


def stage(folder: Path = STAGED) -> None:
    """Write the pages, the pictures and the linked files of the repository into an emptied folder."""
    shutil.rmtree(folder, ignore_errors=True)
    places = pages()
    for file in DOCS.rglob("*"):
        if file.suffix in MEDIA:
            _copy(file, folder / file.relative_to(DOCS))
    for page, place in places.items():

        def moved(target: str, page: Path = page, place: Path = place) -> str:
            file = (page.parent / target).resolve()
            if file.is_file() and file not in places and not file.is_relative_to(DOCS):
                # A source file, which a browser shows as text if its name has a suffix.
                staged = Path("files", file.relative_to(ROOT)).with_suffix(file.suffix or ".txt")
                _copy(file, folder / staged)
            else:
                staged = places.get(file) or Path(os.path.relpath(file, DOCS))
            return os.path.relpath(staged, place.parent)

        target = folder / place
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(with_links(page.read_text(), moved))


def _copy(file: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(file, target)


if __name__ == "__main__":
    stage()
