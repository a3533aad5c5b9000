"""What a posterior holds and takes, worked out before it is built, against one that is built."""

from typing import Any

import pytest

from blora.base_model import BaseModel
from blora.config import PosteriorConfig
from blora.posterior.bank import SampleBank
from blora.posterior.posterior import Posterior
from blora.posterior.sizes import memory_bytes, tensor_shapes
from tests.blora.adapters import FORMS
from tests.memory import peak_memory
from tests.scenarios import adapted_modules

SMALL = {"rank": 3, "inducing_rows": 4, "inducing_cols": 5}
FORMS_AND_LAYERS = {**FORMS, "layers": {"bayesian_layers": (1,)}}


@pytest.mark.parametrize("form", FORMS_AND_LAYERS)
def test_names_and_shapes_are_those_of_the_state(llama: BaseModel, form: str) -> None:
    config = PosteriorConfig(**SMALL, **FORMS_AND_LAYERS[form])
    modules = adapted_modules(llama.model)
    state = Posterior(modules, config, seed=0).state_dict()
    assert dict(tensor_shapes(modules, config)) == {name: tuple(tensor.shape) for name, tensor in state.items()}


@pytest.mark.parametrize(
    "form",
    [
        {"rank": 64},
        {"rank": 8, "inducing_rows": 256, "inducing_cols": 256},
        {"rank": 128},
        {"rank": 512, "method": "lora"},
    ],
    ids=str,
)
def test_memory_is_no_more_than_worked_out(form: dict[str, Any]) -> None:
    config = PosteriorConfig(**form)
    modules = {f"model.layers.{i}.q_proj": (1024, 1024) for i in range(2)}
    bound = memory_bytes(modules, config, 16) / 2**20
    with peak_memory() as peak:
        SampleBank.draw(Posterior(modules, config, seed=0), "sha256:0", 16, 0)
    assert peak.mib < bound + 64
