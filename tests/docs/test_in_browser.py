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
from playwright.sync_api import Browser, Page

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


def test_the_search_finds_what_is_written(browser: Browser, address: str) -> None:
    with reading(browser, address, "light") as (page, _):
        page.get_by_role("button", name="Search").first.click()
        page.locator("input[aria-label=Search]").fill("prediction set")
        page.get_by_text(re.compile(r"^[1-9]\d* results$")).wait_for()
