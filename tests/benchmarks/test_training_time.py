"""The benchmark of training time: both methods take real steps on the same rows."""

import torch

from benchmarks.training_time import CONFIGS, Stepper
from blora.posterior.inject import inject
from tests.scenarios import adapted_modules, tiny_base
from tests.training.toys import labelled, toy_data


def test_a_step_takes_time_and_learns() -> None:
    base = tiny_base()
    modules = adapted_modules(base.model)
    inject(base.model, modules)
    rows = labelled(base, toy_data(4))
    for config in CONFIGS.values():
        stepper = Stepper(base, modules, config)
        before = [parameter.clone() for parameter in stepper.posterior.parameters()]
        assert stepper.step(rows) > 0
        after = list(stepper.posterior.parameters())
        assert any(not torch.equal(a, b) for a, b in zip(after, before, strict=True))
