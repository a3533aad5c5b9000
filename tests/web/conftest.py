"""A browser for each file of tests, and a server with adapters of every kind for it."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page

from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, handle
from tests.web.browser import chromium, open_page, serving

FAMILIARITY: Any = SimpleNamespace(reference=torch.linspace(0, 1, 100))
# A model with three questions, one without a calibration, and one whose choices come with each request.
HANDLES = (
    handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST)),
    replace(handle("desk", "sha256:" + "3" * 64, choices=CHOICES), familiarity=FAMILIARITY),
    handle("desk.urgent", "sha256:" + "4" * 64, choices=("true", "false")),
    handle("desk.mood", "sha256:" + "6" * 64, choices=("calm", "annoyed", "angry")),
    handle("open", OPEN_DIGEST),
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as opened:
        yield opened


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(FakeEngine(handles=HANDLES)) as address:
        yield address


@pytest.fixture
def page(browser: Browser, url: str) -> Iterator[Page]:
    """The playground in a context of its own, whose console has to stay silent."""
    with open_page(browser, url) as watched:
        watched.page.get_by_label("Text", exact=True).wait_for()
        yield watched.page
