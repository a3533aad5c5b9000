from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.server.monitoring.redis_store import Store


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    made = Store(tmp_path)
    made.start()
    yield made
    made.stop()
