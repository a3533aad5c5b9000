"""Two adapters on disk, and an engine that serves them."""

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from blora.adapter.calibration_file import CALIBRATION_FILE
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import Asking, loaded, settings, write_adapter


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base model and two adapters on disk."""
    root = tmp_path_factory.mktemp("engine")
    tiny_model().save_pretrained(root / "tiny")
    tiny_tokenizer().save_pretrained(root / "tiny")
    write_adapter(root / "one", root / "tiny", seed=1)
    write_adapter(root / "two", root / "tiny", seed=2, policy={"min_confidence": 0.5})
    return root


@pytest.fixture
async def asking(folder: Path) -> AsyncIterator[Asking]:
    async with loaded(settings(folder)) as (engine, state):
        yield Asking(engine, state)


@pytest.fixture
def calibratable(folder: Path) -> Iterator[Path]:
    """Return the folder of the adapters, and remove their calibrations after the test."""
    yield folder
    (folder / "one" / CALIBRATION_FILE).unlink()
