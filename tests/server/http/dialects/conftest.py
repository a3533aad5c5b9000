"""The adapters of `decision_models` behind the running app."""

import pytest

from tests.server import decision_models
from tests.server.fakes import FakeEngine


@pytest.fixture
def engine() -> FakeEngine:
    return decision_models.engine()
