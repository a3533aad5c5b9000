from pathlib import Path

import pytest
import torch
from torch import nn

from blora.errors import ConfigError
from blora.training.lora.optimizer import make_optimizer
from tests.scenarios import tiny_base
from tests.training.toys import toy_config, toy_posterior


@pytest.mark.parametrize("family", ["diagonal", "matrix_normal", "flow"])
def test_means_inputs_and_scales_learn_at_their_own_rates(tmp_path: Path, family: str) -> None:
    posterior = toy_posterior(tiny_base(), family=family)
    config = toy_config(tmp_path, learning_rate=3.0, input_learning_rate=2.0, scale_learning_rate=1.0)
    rates = {id(p): group["lr"] for group in make_optimizer(posterior, config).param_groups for p in group["params"]}
    for name, parameter in posterior.named_parameters():
        last = name.rpartition(".")[2]
        expected = 2.0 if last.startswith("Z_") else 1.0 if last.startswith("raw_") else 3.0
        assert rates.pop(id(parameter)) == expected, name
    assert not rates


def test_every_kind_of_a_flow_has_its_parameters(tmp_path: Path) -> None:
    posterior = toy_posterior(tiny_base(), family="flow")
    config = toy_config(tmp_path, learning_rate=3.0)
    rates = {id(p): group["lr"] for group in make_optimizer(posterior, config).param_groups for p in group["params"]}
    network = [parameter for name, parameter in posterior.named_parameters() if ".transform." in name]
    assert network
    assert {rates[id(parameter)] for parameter in network} == {3.0}


def test_a_parameter_of_no_known_kind_is_refused(tmp_path: Path) -> None:
    posterior = toy_posterior(tiny_base())
    posterior.register_parameter("weight", nn.Parameter(torch.zeros(2)))
    with pytest.raises(
        ConfigError, match=r"got parameter weight, which has no learning rate, expected one of inducing"
    ):
        make_optimizer(posterior, toy_config(tmp_path))


def test_factors_without_a_posterior_learn_at_a_rate_of_their_own(tmp_path: Path) -> None:
    posterior = toy_posterior(tiny_base(), bayesian_layers=(1,))
    config = toy_config(tmp_path, learning_rate=3.0, lora_learning_rate=0.5)
    rates = {id(p): group["lr"] for group in make_optimizer(posterior, config).param_groups for p in group["params"]}
    points = {name for name, parameter in posterior.named_parameters() if rates[id(parameter)] == 0.5}
    assert points == {name for name, _ in posterior.named_parameters() if "layers/0/" in name}
    assert points


def test_a_frozen_parameter_is_left_out(tmp_path: Path) -> None:
    posterior = toy_posterior(tiny_base(), method="lora")
    posterior.requires_grad_(False)
    kept = next(posterior.parameters()).requires_grad_()
    [group] = make_optimizer(posterior, toy_config(tmp_path)).param_groups
    assert [id(p) for p in group["params"]] == [id(kept)]
