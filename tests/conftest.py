"""The embedded base model and a tiny one, made once a run, reproducible property tests, and a log that no test leaves changed."""

import gc
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import settings

from blora.base_model import BaseModel, load_base_model
from blora.cli import GC_THRESHOLD
from tests.scenarios import tiny_model, tiny_tokenizer

settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("reproducible")


def pytest_collection_finish() -> None:
    """Keep the garbage collector from searching what lasts as long as the run: modules and ten thousand collected tests."""
    gc.set_threshold(GC_THRESHOLD)
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def log_of_nobody() -> Iterator[None]:
    """Undo the level and the handler that a command sets for the process, whichever test or fixture has called it."""
    log = logging.getLogger("blora")

    def undo() -> None:
        log.handlers.clear()
        log.setLevel(logging.NOTSET)

    undo()
    yield
    undo()


@pytest.fixture(scope="session")
def base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model on disk."""
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    tiny_model("llama").save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def smollm2() -> BaseModel:
    return load_base_model("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def smollm2_bf16() -> BaseModel:
    return load_base_model("embedded", device="cpu", dtype="bfloat16")
