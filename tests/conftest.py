"""The embedded base model, loaded once a run, reproducible property tests, and a log that no test leaves changed."""

import logging
from collections.abc import Iterator

import pytest
from hypothesis import settings

from blora.base_model import BaseModel, load_base_model

settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("reproducible")


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
def smollm2() -> BaseModel:
    return load_base_model("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def smollm2_bf16() -> BaseModel:
    return load_base_model("embedded", device="cpu", dtype="bfloat16")
