"""A tiny base model and an adapter of it on disk."""

import shutil
from pathlib import Path

import pytest

from blora.base_model import BaseModel
from tests.blora.adapters import saved
from tests.scenarios import tiny_base


@pytest.fixture(scope="module")
def llama() -> BaseModel:
    return tiny_base("llama")


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory, llama: BaseModel) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "triage"
    saved(folder, llama)
    return folder


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy of an adapter to spoil."""
    return Path(shutil.copytree(original, tmp_path / "triage"))
