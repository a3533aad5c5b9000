"""The embedded base model in two precisions, without the layers that a test injects."""

from collections.abc import Iterator

import pytest

from blora.base_model import BaseModel
from blora.posterior.inject import eject


@pytest.fixture(params=[("smollm2", 1e-4), ("smollm2_bf16", 0.05)], ids=["float32", "bfloat16"])
def embedded(request: pytest.FixtureRequest) -> Iterator[tuple[BaseModel, float]]:
    """The embedded model, and the tolerance of its probabilities and of their logarithms in nats."""
    name, tolerance = request.param
    base = request.getfixturevalue(name)
    yield base, tolerance
    eject(base.model)
