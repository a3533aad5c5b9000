"""Chromium, driven by playwright, and servers for it in a thread of this process."""

import contextlib
import os
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
import uvicorn
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, BrowserContext, ConsoleMessage, Page, sync_playwright

from blora.server.app import create_app
from blora.server.settings import Settings
from tests.server.fakes import FakeEngine

__all__ = ["Watched", "ask_within", "chromium", "needs_chromium", "open_page", "serving", "violations"]

CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
START_TIMEOUT_S = 30.0
# Chromium reports every response with an error so, whether or not the page deals with it.
REFUSED = "Failed to load resource: the server responded with a status of"

needs_chromium = pytest.mark.skipif(
    CHROMIUM is None and "CI" not in os.environ,
    reason="chromium is not installed; tests/programs.sh installs it on Debian",
)


@dataclass
class Watched:
    """A page, and what its console says that nobody expects."""

    page: Page
    complaints: list[str] = field(default_factory=list)

    def hear(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning") and not message.text.startswith(REFUSED):
            self.complaints.append(message.text)


@contextmanager
def chromium() -> Iterator[Browser]:
    """A browser without a window. Only synchronous tests may run while it is open."""
    assert CHROMIUM is not None, "chromium is not installed; tests/programs.sh installs it on Debian"
    with sync_playwright() as playwright:
        # Without its sandbox, which Chromium refuses to have as root.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(browser: Browser, url: str, **options: Any) -> Iterator[Watched]:
    """Open a page in a context of its own; its console has to be silent at the end."""
    context: BrowserContext = browser.new_context(base_url=url, accept_downloads=True, **options)
    context.set_default_timeout(10_000)
    watched = Watched(context.new_page())
    watched.page.on("console", watched.hear)
    watched.page.on("pageerror", lambda error: watched.complaints.append(str(error)))
    try:
        watched.page.goto("/")
        yield watched
        assert watched.complaints == []
    finally:
        context.close()


@contextmanager
def serving(engine: FakeEngine, **settings: Any) -> Iterator[str]:
    """The address of a server around an engine, in a thread with an event loop of its own."""
    app = create_app(Settings(**{"default_adapter": "triage", **settings}), engine)
    server = uvicorn.Server(uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, lifespan="on"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started and thread.is_alive() and time.monotonic() < deadline:
            time.sleep(0.02)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(timeout=START_TIMEOUT_S)
        with contextlib.suppress(RuntimeError):
            engine.gate.set()


def ask_within(page: Page, *texts: str) -> list[dict[str, Any]]:
    """Ask the default adapter about texts from within the page, and return the answers or errors."""
    asking = "(body) => fetch('/v1/predict', { method: 'POST', headers: { 'content-type': 'application/json' }, body: JSON.stringify(body) }).then((r) => r.json())"
    found: list[dict[str, Any]] = page.evaluate(asking, {"inputs": [{"prompt": text} for text in texts]})["predictions"]
    return found


def violations(page: Page) -> list[str]:
    """Return what axe-core finds wrong with a page as it is now, a line for each element."""
    found = Axe().run(page).response["violations"]
    return [f"{each['id']}: {node['html'][:200]} {node['failureSummary']}" for each in found for node in each["nodes"]]
