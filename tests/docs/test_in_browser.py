"""The built site in Chromium: complete, silent, and usable by everybody."""

import contextlib
import re
import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.docs.test_site import site
from tests.web.browser import chromium, needs_chromium, open_page, violations

__all__ = ["site"]

PAGES = ("index", "tutorial", "concepts/guarantee", "reference/cli", "comparison")
# The theme's copy buttons stand in landmarks without names of their own.
OF_THE_THEME = "landmark-unique"

pytestmark = needs_chromium


class Silent(SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture(scope="module")
def address(site: Path) -> Iterator[str]:
    """The address of a plain web server of the built folder."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Silent, directory=str(site)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as running:
        yield running


@contextlib.contextmanager
def reading(browser: Browser, address: str, theme: str) -> Iterator[tuple[Page, set[str]]]:
    """A page in a theme, and the hosts that it asks."""
    with open_page(browser, address, color_scheme=theme) as watched:
        hosts: set[str] = set()
        watched.page.on("request", lambda request: hosts.add(urlsplit(request.url).netloc))
        yield watched.page, hosts


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_pages_ask_no_other_host_and_pass_the_audit(browser: Browser, address: str, theme: str) -> None:
    with reading(browser, address, theme) as (page, hosts):
        for name in PAGES:
            page.goto(f"/{name}.html")
            assert [found for found in violations(page) if not found.startswith(OF_THE_THEME)] == [], name
        assert hosts == {urlsplit(address).netloc}


# What a reader types, and the page that should come first.
FIRST = {
    "abstain": "how-to/threshold.html",
    "threshold": "how-to/threshold.html",
    "api key": "how-to/keys.html",
    "temperature": "calibration.html#recalibration-temperature-length-power-lapse-rate",
    "prediction set": "calibration.html#prediction-sets",
    "calibrate": "reference/cli.html#blora-calibrate",
    "min_familiarity": "familiarity.html",
    "ECE": "concepts/numbers.html#many-answers-accuracy-nll-ece-brier-aurc",
    "latency": "serving.html#throughput-and-latency-under-load",
    "vLLM": "deploy.html#vllm",
    "kubernetes": "deploy.html#kubernetes",
    "OOM": "deploy.html#sizing",
}


def test_the_search_finds_what_is_written(browser: Browser, address: str) -> None:
    with reading(browser, address, "light") as (page, _):
        page.get_by_role("button", name="Search").first.click()
        first = page.locator("a[role=option]").first
        for words, place in FIRST.items():
            page.locator("input[aria-label=Search]").fill(words)
            expected = re.escape(place.partition("#")[0]) + r"\?h=[^#]*" + re.escape("".join(place.partition("#")[1:]))
            expect(first).to_have_attribute("href", re.compile(expected + "$"))


def test_settings_can_be_read_on_a_phone_and_their_names_are_whole_on_a_desk(browser: Browser, address: str) -> None:
    with reading(browser, address, "light") as (page, _):
        page.goto("/settings.html")
        page.set_viewport_size({"width": 390, "height": 844})
        widths = "tables => tables.map(table => [table.scrollWidth, table.closest('article').clientWidth])"
        assert all(table <= room for table, room in page.locator("article table").evaluate_all(widths))
        page.set_viewport_size({"width": 1280, "height": 900})
        lines = "names => names.filter(name => name.getClientRects().length > 1).map(name => name.textContent)"
        assert page.locator("article td:first-child code").evaluate_all(lines) == []
