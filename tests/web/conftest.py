"""A browser for each file of tests, and a server with adapters of every kind for it."""

from collections.abc import Iterator
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from playwright.sync_api import Browser, Page

from blora.config import FamiliarityConfig, QuestionConfig
from blora.server.engines.handle import AdapterHandle
from tests.server.calibrations import calibration
from tests.server.fakes import CHOICES, OPEN_DIGEST, TRIAGE_DIGEST, FakeEngine, handle
from tests.web.browser import chromium, open_page, serving

FAMILIARITY: Any = SimpleNamespace(
    reference=torch.linspace(0, 1, 100),
    config=FamiliarityConfig(kind="gaussian", depths=(1,), n_states=2, n_low=2, n_directions=1, n_axes=0, n_labels=0),
)
# What the training record says of an adapter and of the cheapest methods on the same rows.
PARTS = {
    name: {"accuracy": accuracy, "nll": 0.5, "aurc": 0.1}
    for name, accuracy in (("regression on frozen states", 0.71), ("head, 64 draws", 0.82))
}


def _desk() -> AdapterHandle:
    """Return a handle with a familiarity, and the cheapest methods in its training record."""
    plain = handle("desk", "sha256:" + "3" * 64, choices=CHOICES)
    record = plain.config.training | {"parts": PARTS}
    return replace(plain, familiarity=FAMILIARITY, config=replace(plain.config, training=record))


# A model with three questions, one without a calibration, and one whose choices come with each request.
HANDLES = (
    handle("triage", TRIAGE_DIGEST, choices=CHOICES, calibration=calibration(TRIAGE_DIGEST)),
    _desk(),
    handle(
        "desk.urgent",
        "sha256:" + "4" * 64,
        choices=("true", "false"),
        question=QuestionConfig(name="urgent", type="predicate", instructions="Is it urgent?"),
    ),
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
