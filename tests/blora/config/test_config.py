import dataclasses
import json
import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from blora.config import (
    FORMAT_VERSION,
    AdapterConfig,
    BaseModelRef,
    PosteriorConfig,
    PromptConfig,
    SamplingConfig,
)
from blora.errors import ConfigError


def make(**changes: Any) -> AdapterConfig:
    settings: dict[str, Any] = {
        "base_model": BaseModelRef(id="owner/model", revision="abc", fingerprint="sha256:0", reading="sha256:1"),
        "target_modules": ("q_proj",),
        "modules": {"layers.0.q_proj": (6, 5)},
        "posterior": PosteriorConfig(),
        "prompt": PromptConfig(template="Q: {prompt}\nA:", choices=("yes", "no"), scoring="label"),
        "sampling": SamplingConfig(n_samples=8, seed=3),
        "policy": {"min_confidence": 0.8},
        "training": {"epochs": 3, "validation": {"nll": 0.5}},
    }
    return AdapterConfig(**{**settings, **changes})


def as_json(**changes: Any) -> str:
    return json.dumps(make(**changes).to_dict())


def edited(edit: Any) -> str:
    data = json.loads(as_json())
    edit(data)
    return json.dumps(data)


# JSON


def test_json_round_trip() -> None:
    assert AdapterConfig.from_json(as_json()) == make()
    assert AdapterConfig.from_json(as_json(policy=None)) == make(policy=None)
    assert AdapterConfig.from_json(as_json().encode()) == make()


@given(
    rank=st.integers(1, 1024),
    prior_std=st.floats(1e-6, 1e6),
    lambdas=st.tuples(st.floats(1e-6, 1), st.floats(1e-6, 1)).filter(lambda pair: pair[0] < pair[1]),
    seed=st.integers(0, 2**63 - 1),
    template=st.text().filter(lambda text: "{prompt}" not in text),
)
def test_every_valid_config_survives_the_round_trip(
    rank: int, prior_std: float, lambdas: tuple[float, float], seed: int, template: str
) -> None:
    config = make(
        posterior=PosteriorConfig(rank=rank, prior_std=prior_std, lambda_init=lambdas[0], lambda_max=lambdas[1]),
        sampling=SamplingConfig(seed=seed),
        prompt=PromptConfig(template=template + "{prompt}"),
    )
    assert AdapterConfig.from_json(json.dumps(config.to_dict())) == config


def test_the_format_version_is_written() -> None:
    assert json.loads(as_json())["format_version"] == FORMAT_VERSION


@pytest.mark.parametrize(
    ("edit", "where"),
    [
        (lambda d: d.pop("base_model"), "base_model"),
        (lambda d: d.update(target_modules="q_proj"), "target_modules"),
        (lambda d: d["base_model"].pop("fingerprint"), "base_model.fingerprint"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["posterior"].update(lambda_min=1), "posterior.lambda_min"),
        (lambda d: d["posterior"].update(rank="many"), "posterior.rank"),
        (lambda d: d["posterior"].update(rank=2.5), "posterior.rank"),
        (lambda d: d["posterior"].update(family="laplace"), "posterior.family"),
        (lambda d: d["posterior"].update(method="dropout"), "posterior.method"),
        (lambda d: d["prompt"].update(scoring="number"), "prompt.scoring"),
        (lambda d: d["modules"].update(x=[1]), "modules.x"),
        (lambda d: d.update(policy={"min_confidence": "high"}), "policy.min_confidence"),
    ],
)
def test_a_bad_file_is_refused_naming_the_field(edit: Any, where: str) -> None:
    with pytest.raises(ConfigError, match=f"got a bad value at {where}.*expected a valid adapter config"):
        AdapterConfig.from_json(edited(edit))


@pytest.mark.parametrize("text", ["", "{", "[]", "null"])
def test_text_that_is_no_config_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="expected a valid adapter config"):
        AdapterConfig.from_json(text)


def test_a_value_out_of_range_in_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="got rank = 0, expected 1 to 1024"):
        AdapterConfig.from_json(edited(lambda d: d["posterior"].update(rank=0)))


# Ranges


@pytest.mark.parametrize("name", ["rank", "inducing_rows", "inducing_cols"])
@pytest.mark.parametrize("value", [0, -1, 1025])
def test_sizes_out_of_range_are_refused(name: str, value: int) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = {value}, expected 1 to 1024"):
        PosteriorConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["alpha", "prior_std", "lambda_max", "scale_init"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.inf, math.nan])
def test_scales_that_are_not_positive_and_finite_are_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = {value}, expected a positive number"):
        PosteriorConfig(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0.0, 0.2, 0.3, math.nan])
def test_lambda_starts_between_zero_and_its_cap(value: float) -> None:
    with pytest.raises(ConfigError, match=f"got lambda_init = {value}, expected a positive number below lambda_max"):
        PosteriorConfig(lambda_init=value, lambda_max=0.2)


@pytest.mark.parametrize(
    ("kind", "name"), [(PosteriorConfig, "family"), (PosteriorConfig, "method"), (PromptConfig, "scoring")]
)
def test_a_name_that_is_not_one_of_the_choices_is_refused(kind: type, name: str) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = 'nonesuch', expected one of"):
        kind(**{name: "nonesuch"})


@pytest.mark.parametrize("template", ["", "no placeholder", "{prompt} {prompt} {prompt}", "{ prompt }"])
def test_a_template_holds_the_prompt_once_or_twice(template: str) -> None:
    with pytest.raises(ConfigError, match=r"expected one that holds \{prompt\} once or twice"):
        PromptConfig(template=template)


@pytest.mark.parametrize("power", [-0.1, 2.1, math.nan])
def test_a_length_power_out_of_range_is_refused(power: float) -> None:
    with pytest.raises(ConfigError, match=f"got length_power = {power}, expected 0 to 2"):
        PromptConfig(length_power=power)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *(("n_samples", 0), ("n_samples", 1025), ("seed", -1), ("seed", 2**63)),
        *(
            ("temperature", 0.0),
            ("temperature", 0.009),
            ("temperature", 101.0),
            ("temperature", math.inf),
            ("lapse", -0.1),
            ("lapse", 1.0),
            ("lapse", math.nan),
        ),
    ],
)
def test_sampling_out_of_range_is_refused(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"got {name} = {value}, expected"):
        SamplingConfig(**{name: value})  # type: ignore[arg-type]


def test_configs_are_immutable() -> None:
    for config, name in [(PosteriorConfig(), "rank"), (PromptConfig(), "template"), (make(), "policy")]:
        with pytest.raises(dataclasses.FrozenInstanceError):
            setattr(config, name, None)
