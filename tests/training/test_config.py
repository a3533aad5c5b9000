from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest

from blora.errors import ConfigError
from blora.training.config import TrainConfig


def config(**settings: Any) -> TrainConfig:
    return TrainConfig(work_dir=Path("work"), **settings)


def test_the_defaults_make_sense() -> None:
    assert config().kl_weight > 0
    assert config().resume is False


def test_a_config_is_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        config().epochs = 5.0  # type: ignore[misc]


def test_every_setting_is_described() -> None:
    assert all(field.metadata["help"] for field in fields(TrainConfig))


@pytest.mark.parametrize(
    "settings",
    [
        {"epochs": 0.5},
        {"warmup": 0.0},
        {"kl_warmup": 0.0},
        {"kl_weight": 0.0},
        {"kl_weight": 1.0},
        {"max_grad_norm": 0.0, "trunk_cache_gib": 0.0},
        {"batch_size": 1, "train_draws": 1, "validation_draws": 1, "patience": 1},
        {"seed": 2**31},
    ],
)
def test_limits_are_allowed(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        assert getattr(config(**settings), name) == value


POSITIVE = (
    "epochs",
    "batch_size",
    "gradient_accumulation",
    "learning_rate",
    "lora_learning_rate",
    "train_draws",
    "validation_draws",
    "patience",
)


@pytest.mark.parametrize("value", [0, -1, float("nan")])
@pytest.mark.parametrize("name", POSITIVE)
def test_what_must_be_positive_is(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = {value}, expected a positive number"):
        config(**{name: value})


@pytest.mark.parametrize("name", ["epochs", "learning_rate"])
def test_infinity_is_no_setting(name: str) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = inf, expected"):
        config(**{name: float("inf")})


@pytest.mark.parametrize("value", [-0.1, 1.0, 2.0, float("nan")])
@pytest.mark.parametrize("name", ["warmup", "kl_warmup"])
def test_warm_up_is_a_share_of_the_steps(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = {value}, expected a share of the steps"):
        config(**{name: value})


@pytest.mark.parametrize("value", [-1e-9, float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["kl_weight", "max_grad_norm", "trunk_cache_gib"])
def test_what_may_be_zero_is_finite_and_not_negative(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = {value}, expected a number of at least 0"):
        config(**{name: value})


def test_a_negative_seed_is_refused() -> None:
    with pytest.raises(ConfigError, match="got seed = -1, expected"):
        config(seed=-1)
