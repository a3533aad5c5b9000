"""A tiny base model, toy data, and a revision that needs no git."""

from pathlib import Path

import pytest

from blora.base_model import BaseModel
from tests.scenarios import tiny_base
from tests.training.toys import toy_data, write_jsonl

REVISION = "0123456789ab"


@pytest.fixture(autouse=True)
def _revision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_REVISION", REVISION)


@pytest.fixture(scope="session")
def toy_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "toy.jsonl", toy_data(20))


@pytest.fixture
def base() -> BaseModel:
    """A base model for one test alone, because training injects layers into it."""
    return tiny_base("llama")
