"""The site as it is built: strictly, with links that lead somewhere, from files of its own alone."""

import re
import shutil
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pytest
import yaml

from docs.site.stage import DOCS, OUTSIDE, ROOT, pages, stage, with_links

BUILD_TIMEOUT_S = 240
# Attributes whose addresses a browser fetches by itself; those of a link it opens when it is clicked.
FETCHED = {("link", "href"), ("script", "src"), ("img", "src"), ("source", "srcset"), ("iframe", "src")}


class Found(HTMLParser):
    """The anchors of a page, and its addresses: what is fetched, and what can be clicked."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.ids: set[str] = set()
        self.fetched: list[str] = []
        self.clicked: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name in ("id", "name") and value:
                self.ids.add(value)
            elif (tag, name) in FETCHED and value:
                self.fetched.append(value)
            elif (tag, name) == ("a", "href") and value:
                self.clicked.append(value)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a strict build, from a copy of the configuration."""
    folder = tmp_path_factory.mktemp("site")
    shutil.copy(ROOT / "mkdocs.yml", folder)
    stage(folder / "dist" / "docs")
    command = [str(Path(sys.executable).with_name("zensical")), "build", "--strict"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=BUILD_TIMEOUT_S)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder / "dist" / "site"


@pytest.fixture(scope="module")
def built(site: Path) -> dict[Path, Found]:
    # The calibration report as one page comes from its own generator, not from the site's.
    found = {page: Found(page.read_text()) for page in site.rglob("*.html") if page.name != "404.html"}
    return {page.resolve(): parsed for page, parsed in found.items()}


def test_every_page_is_built(site: Path, built: dict[Path, Found]) -> None:
    assert {site.resolve() / place.with_suffix(".html") for place in pages().values()} <= set(built)


def test_every_page_is_in_the_navigation() -> None:
    def names(entry: object) -> list[str]:
        if isinstance(entry, str):
            return [entry]
        parts = entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else []
        return [name for part in parts for name in names(part)]

    navigation = names(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"])
    assert sorted(navigation) == sorted(place.as_posix() for place in pages().values())


def test_every_link_leads_somewhere(site: Path, built: dict[Path, Found]) -> None:
    broken = []
    for page, found in built.items():
        for address in [*found.fetched, *found.clicked]:
            parts = urlsplit(address)
            if parts.scheme or parts.netloc:
                continue
            target = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            target = target / "index.html" if target.is_dir() else target
            if not target.is_file() or (
                parts.fragment and target in built and unquote(parts.fragment) not in built[target].ids
            ):
                broken.append(f"{page.relative_to(site.resolve())}: {address}")
    assert broken == []


def test_nothing_is_fetched_from_elsewhere(site: Path, built: dict[Path, Found]) -> None:
    assert [address for found in built.values() for address in found.fetched if urlsplit(address).netloc] == []
    styles = "".join(file.read_text() for file in site.rglob("*.css"))
    assert re.findall(r"url\(\s*['\"]?(?:https?:)?//[^)]*", styles) == []


def test_the_outside_pages_exist() -> None:
    assert all((ROOT / name).is_file() for name in OUTSIDE)


def test_make_builds_it_though_a_folder_has_the_name() -> None:
    phony = re.findall(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert "docs" in " ".join(phony).split()


# Links of the sources, for those who read them without the site


def slug(heading: str) -> str:
    """Return the anchor that code hosts give a heading."""
    plain = re.sub(r"[`*]|\]\([^)]*\)|\[", "", heading).strip().lower()
    return re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")


def anchors(page: Path) -> set[str]:
    prose = re.sub(r"^```.*?^```", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    return {slug(heading) for heading in re.findall(r"^#+ (.*)$", prose, re.MULTILINE)}


@pytest.mark.parametrize("page", pages(), ids=lambda page: str(page.relative_to(ROOT)))
def test_links_of_a_source_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"^```.*?^```|`[^`\n]*`", "", page.read_text(), flags=re.DOTALL | re.MULTILINE)
    links = re.findall(r"\]\(([^)\s]+)\)", prose) + re.findall(r'(?:src|srcset)="([^"]+)"', prose)
    broken = []
    for link in links:
        path, _, anchor = link.partition("#")
        if re.match(r"[a-z]+:", link):
            continue
        target = (page.parent / path).resolve() if path else page
        if not target.exists() or (anchor and target.suffix == ".md" and anchor not in anchors(target)):
            broken.append(link)
    assert broken == []


# Staging


def test_links_are_moved_outside_of_code_alone() -> None:
    text = '[a](x.md#b) <img src="y.png">\n```sh\n[a](x.md)\n```\n[c](https://host/x.md) [d](#e)\n'
    moved = with_links(text, lambda target: f"to/{target}")
    assert moved == '[a](to/x.md#b) <img src="to/y.png">\n```sh\n[a](x.md)\n```\n[c](https://host/x.md) [d](#e)\n'


def test_staging_again_leaves_nothing_behind(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()
    (folder / "old.md").write_text("# Old\n")
    stage(folder)
    assert not (folder / "old.md").exists()
    assert {file.relative_to(folder) for file in folder.rglob("*.md")} == set(pages().values())
    [picture, *_] = sorted((DOCS / "calibration").glob("*.svg"))
    assert (folder / "calibration" / picture.name).read_bytes() == picture.read_bytes()
