import dataclasses
import math

import pytest
import torch

from blora.decision.abstention import AbstainReason, Policy, decide, strictest
from blora.decision.uncertainty import Prediction, summarize
from blora.errors import ConfigError
from blora.scores import SCORES, TABLE

USUAL = {"confidence": 0.7, "predictive_entropy": 0.6, "mutual_information": 0.1}


def prediction(**scores: float) -> Prediction:
    """A prediction with these scores, and others that pass every threshold."""
    certain = {score.name: 1.0 if score.high_is_certain else 0.0 for score in TABLE}
    values = certain | USUAL | scores
    return Prediction(probabilities=(values["confidence"], 1 - values["confidence"]), std=(0.0, 0.0), top=0, **values)


THRESHOLDS = [
    (score.threshold, name, score.reason, -1 if score.high_is_certain else 1) for name, score in SCORES.items()
]
per_threshold = pytest.mark.parametrize(("threshold", "quantity", "reason", "bad_direction"), THRESHOLDS)


@per_threshold
def test_exactly_at_a_threshold_answers(threshold: str, quantity: str, reason: str, bad_direction: int) -> None:
    decision = decide(prediction(**{quantity: 0.4}), Policy(**{threshold: 0.4}))
    assert not decision.abstained
    assert decision.reasons == ()


@per_threshold
def test_just_beyond_a_threshold_abstains_and_says_why(
    threshold: str, quantity: str, reason: str, bad_direction: int
) -> None:
    value = 0.4 + bad_direction * 1e-5
    decision = decide(prediction(**{quantity: value}), Policy(**{threshold: 0.4}))
    assert decision.abstained
    assert decision.reasons == (AbstainReason(reason, value, 0.4),)


@per_threshold
def test_well_within_a_threshold_answers(threshold: str, quantity: str, reason: str, bad_direction: int) -> None:
    assert not decide(prediction(**{quantity: 0.4 - bad_direction * 0.2}), Policy(**{threshold: 0.4})).abstained


@per_threshold
def test_nan_abstains(threshold: str, quantity: str, reason: str, bad_direction: int) -> None:
    decision = decide(prediction(**{quantity: math.nan}), Policy(**{threshold: 0.4}))
    assert decision.abstained
    assert [found.name for found in decision.reasons] == [reason]


@pytest.mark.parametrize("confidence", [0.6, 0.7, 0.8, 0.9])
def test_a_float32_probability_at_its_threshold_answers(confidence: float) -> None:
    # 0.7 in float32 is 0.69999999: below the threshold by rounding alone.
    summary = summarize(torch.tensor([[confidence, 1 - confidence]], dtype=torch.float32))
    assert not decide(summary, Policy(min_confidence=confidence)).abstained


def test_every_failed_threshold_is_a_reason() -> None:
    policy = Policy(min_confidence=0.9, max_predictive_entropy=0.5, max_mutual_information=0.01)
    decision = decide(prediction(), policy)
    assert decision.reasons == (
        AbstainReason("low_confidence", 0.7, 0.9),
        AbstainReason("high_predictive_entropy", 0.6, 0.5),
        AbstainReason("high_mutual_information", 0.1, 0.01),
    )


def test_one_failed_threshold_is_enough_and_the_others_are_no_reasons() -> None:
    policy = Policy(min_confidence=0.5, max_predictive_entropy=2.0, max_mutual_information=0.01)
    decision = decide(prediction(), policy)
    assert decision.abstained
    assert [reason.name for reason in decision.reasons] == ["high_mutual_information"]


def test_without_a_policy_nothing_abstains() -> None:
    decision = decide(prediction(confidence=0.5, predictive_entropy=99.0, mutual_information=9.0), None)
    assert not decision.abstained
    assert decision.reasons == ()


def test_thresholds_of_zero_are_thresholds() -> None:
    assert decide(prediction(), Policy(max_mutual_information=0.0)).abstained
    assert not decide(prediction(mutual_information=0.0), Policy(max_mutual_information=0.0)).abstained
    assert not decide(prediction(), Policy(min_confidence=0.0)).abstained


def test_a_confidence_of_one_passes_the_strictest_policy() -> None:
    sure = summarize(torch.tensor([[1.0, 0.0]] * 4), familiarity=1.0)
    strictest = Policy(**{score.threshold: 1.0 if score.high_is_certain else 0.0 for score in SCORES.values()})
    assert not decide(sure, strictest).abstained


# Policies


def test_a_policy_without_thresholds_is_refused() -> None:
    with pytest.raises(ConfigError, match="a policy without thresholds, expected at least one of min_confidence"):
        Policy()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_confidence", -0.1),
        ("min_confidence", 1.1),
        ("min_confidence", math.nan),
        ("max_predictive_entropy", -0.1),
        ("max_predictive_entropy", math.nan),
        ("max_predictive_entropy", math.inf),
        ("max_mutual_information", -1e-9),
        ("max_mutual_information", math.inf),
    ],
)
def test_thresholds_out_of_range_are_refused(name: str, value: float) -> None:
    expected = "a number from 0 to 1.0" if name == "min_confidence" else "a finite number of at least 0"
    with pytest.raises(ConfigError, match=f"got policy {name} = {value}, expected {expected}$"):
        Policy(**{name: value})


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_the_ends_of_the_range_are_thresholds(value: float) -> None:
    assert Policy(min_confidence=value).min_confidence == value


def test_an_owners_policy_comes_from_a_mapping() -> None:
    policy = Policy.from_mapping({"min_confidence": 0.8, "max_mutual_information": 0.2})
    assert policy == Policy(min_confidence=0.8, max_mutual_information=0.2, source="adapter")
    assert policy.max_predictive_entropy is None
    assert policy.thresholds() == {"min_confidence": 0.8, "max_mutual_information": 0.2}
    assert policy.limits() == {"confidence": 0.8, "mutual_information": 0.2}


@pytest.mark.parametrize("name", ["min_confidense", "source"])
def test_an_unknown_threshold_in_a_mapping_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"got unknown policy thresholds \['{name}'\]"):
        Policy.from_mapping({name: 0.8, "min_confidence": 0.5})


def test_a_policy_is_immutable() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Policy(min_confidence=0.5).min_confidence = 0.1  # type: ignore[misc]


@per_threshold
def test_a_score_needs_its_fewest_draws_and_no_more(
    threshold: str, quantity: str, reason: str, bad_direction: int
) -> None:
    policy, fewest = Policy(**{threshold: 0.4}), SCORES[quantity].fewest_draws
    assert policy.short_of_draws(fewest) is None
    policy.check_draws(fewest)
    assert policy.short_of_draws(fewest - 1) == SCORES[quantity]
    with pytest.raises(ConfigError, match=f"got policy {threshold} with n_samples = {fewest - 1}, expected at least"):
        policy.check_draws(fewest - 1)


# The strictest of several


@per_threshold
def test_of_several_thresholds_on_a_score_the_one_that_withholds_most_is_kept(
    threshold: str, quantity: str, reason: str, bad_direction: int
) -> None:
    policies = [Policy(**{threshold: value}) for value in (0.5, 0.3, 0.7)]
    found = strictest(policies)
    assert found is not None
    for value in (0.2, 0.4, 0.6, 0.8):
        asked = prediction(**{quantity: value})
        assert decide(asked, found).abstained == any(decide(asked, policy).abstained for policy in policies)


def test_a_threshold_that_one_of_several_policies_has_is_kept() -> None:
    policies = Policy(min_confidence=0.6, min_familiarity=0.1), Policy(max_predictive_entropy=0.5)
    assert strictest(policies) == Policy(min_confidence=0.6, min_familiarity=0.1, max_predictive_entropy=0.5)
    assert strictest([]) is None
