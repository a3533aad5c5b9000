"""The embedded base model, loaded once a run, and reproducible property tests."""

import pytest
from hypothesis import settings

from blora.base_model import BaseModel, load_base_model

settings.register_profile("reproducible", deadline=None, derandomize=True, max_examples=50)
settings.load_profile("reproducible")


@pytest.fixture(scope="session")
def smollm2() -> BaseModel:
    return load_base_model("embedded", device="cpu", dtype="float32")


@pytest.fixture(scope="session")
def smollm2_bf16() -> BaseModel:
    return load_base_model("embedded", device="cpu", dtype="bfloat16")
