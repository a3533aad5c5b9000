"""A LoRA trained on toy rows, from which the methods without training of their own start."""

from dataclasses import dataclass

import pytest

from blora.base_model import BaseModel
from blora.posterior.draws import Draws
from blora.training.lora.trainer import fit
from blora.training.rows.packed import LabelledRow
from tests.scenarios import tiny_base
from tests.training.toys import labelled, toy_config, toy_data, toy_posterior


@dataclass(frozen=True)
class Trained:
    base: BaseModel
    lora: Draws
    train: list[LabelledRow]
    validation: list[LabelledRow]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    base = tiny_base()
    posterior = toy_posterior(base, method="lora")
    train, validation = labelled(base, toy_data(16)), labelled(base, toy_data(8, seed=1))
    config = toy_config(tmp_path_factory.mktemp("lora"), epochs=2, lora_learning_rate=3e-2)
    fit(base, posterior, train, validation, config)
    return Trained(base, posterior.mean(), train, validation)
