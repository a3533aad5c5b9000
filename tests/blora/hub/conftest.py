"""A hub, an environment that leads the real client to it, and an adapter to publish."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants

from tests.hub import Hub, hub

DEMO = Path(__file__).parents[3] / "examples/triage/adapter"


@pytest.fixture
def remote(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub that the client finds, with an empty cache, and without a token."""
    with hub() as found:
        monkeypatch.setenv("HF_ENDPOINT", found.url)
        monkeypatch.setenv("BLORA_CACHE_DIR", str(tmp_path / "cache"))
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield found


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A copy of the demo adapter, beside files that are not an adapter's."""
    folder = tmp_path / "adapter"
    shutil.copytree(DEMO, folder)
    (folder / "notes.txt").write_text("mine\n")
    return folder
