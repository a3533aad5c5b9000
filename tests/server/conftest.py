"""A running app with a fake engine, and an environment without settings."""

import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from blora.server.settings import Settings
from tests.server.fakes import FakeEngine, Running, running


@pytest.fixture
def engine() -> FakeEngine:
    return FakeEngine()


@pytest.fixture
async def server(engine: FakeEngine) -> AsyncIterator[Running]:
    async with running(engine) as up:
        yield up


@pytest.fixture(autouse=True)
def _log_handlers_stay() -> Iterator[None]:
    """Restore the log handlers after a test."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:], root.level = handlers, level


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for field_name in Settings.model_fields:
        monkeypatch.delenv(f"BLORA_{field_name.upper()}", raising=False)
