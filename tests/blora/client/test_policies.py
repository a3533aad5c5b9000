"""Conditions of an application, alone and combined."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from blora.client.answers import Prediction
from blora.client.errors import ClientError
from blora.client.policies import AbstainAbove, AbstainBelow, AbstainPolicy
from blora.decision.abstention import Policy, decide
from blora.decision.uncertainty import summarize
from tests.blora.client.predictions import prediction, withheld

SURE, SPLIT = AbstainBelow(0.8), AbstainAbove(mutual_information=0.1)


@pytest.mark.parametrize("policy", [SURE, SPLIT, SURE | SPLIT, SURE & SPLIT])
def test_a_policy_is_no_truth_value_so_that_or_loses_no_condition(policy: AbstainPolicy) -> None:
    for combine in (lambda: policy or SPLIT, lambda: policy and SPLIT, lambda: not policy):
        with pytest.raises(TypeError, match=r"got a policy as a truth value, expected a combination by \| or &"):
            combine()


@pytest.mark.parametrize(
    ("policy", "fields", "expected"),
    [
        (SURE, {"confidence": 0.8}, []),
        (SURE, {"confidence": 0.79}, ["low_confidence"]),
        (SPLIT, {"mutual_information": 0.1}, []),
        (AbstainBelow(margin=0.3), {"margin": 0.3}, []),
        (AbstainBelow(margin=0.3), {"margin": 0.29}, ["low_margin"]),
        (SPLIT, {"mutual_information": 0.11}, ["high_mutual_information"]),
        (AbstainAbove(predictive_entropy=0.3, expected_entropy=0.4), {}, ["high_predictive_entropy"]),
        (
            AbstainAbove(predictive_entropy=0.1, expected_entropy=0.1),
            {},
            ["high_predictive_entropy", "high_expected_entropy"],
        ),
        (SURE | SPLIT, {}, []),
        (SURE | SPLIT, {"confidence": 0.5}, ["low_confidence"]),
        (SURE | SPLIT, {"confidence": 0.5, "mutual_information": 0.2}, ["low_confidence", "high_mutual_information"]),
        (SURE & SPLIT, {"confidence": 0.5}, []),
        (SURE & SPLIT, {"mutual_information": 0.2}, []),
        (SURE & SPLIT, {"confidence": 0.5, "mutual_information": 0.2}, ["low_confidence", "high_mutual_information"]),
        (SURE & SPLIT | AbstainBelow(0.1), {"confidence": 0.05}, ["low_confidence"]),
    ],
)
def test_an_answer_is_withheld_where_the_condition_holds(
    policy: AbstainPolicy, fields: dict[str, Any], expected: list[str]
) -> None:
    given = prediction(**fields)
    found = policy.apply(given)
    assert [reason.reason for reason in found.abstain_reasons] == expected
    assert found.abstained == bool(expected)
    assert found.answer == (None if expected else "billing")
    assert (given.answer, given.abstained) == ("billing", False)  # it is another object


@pytest.mark.parametrize(("policy", "name"), [(SURE, "confidence"), (SPLIT, "mutual_information")])
def test_an_answer_with_nan_is_not_given(policy: AbstainPolicy, name: str) -> None:
    with pytest.raises(ValidationError, match="finite number"):
        prediction(**{name: math.nan})
    with pytest.raises(ValidationError, match="finite number"):  # of the reason to withhold it
        policy.apply(prediction().model_copy(update={name: math.nan}))


def test_reasons_tell_value_and_threshold() -> None:
    [reason] = AbstainBelow(0.95).reasons(prediction())
    assert (reason.value, reason.threshold) == (0.9, 0.95)


@pytest.mark.parametrize("off", [-2e-6, -5e-7, 0.0, 5e-7])
def test_client_and_server_compare_alike(off: float) -> None:
    """A value within the rounding of float32 of its threshold fails neither, since both ask `Score.fails`."""
    given = prediction(confidence=0.9 + off)
    row = torch.tensor([[0.9 + off, 0.1 - off]], dtype=torch.float64)
    here = bool(AbstainBelow(0.9).reasons(given))
    assert here == decide(summarize(row), Policy(min_confidence=0.9)).abstained == (off == -2e-6)


def test_the_servers_reasons_stay() -> None:
    given = prediction(**withheld())
    assert AbstainBelow(0.5).apply(given) is given
    found = AbstainAbove(mutual_information=0.01).apply(given)
    assert [reason.reason for reason in found.abstain_reasons] == ["low_confidence", "high_mutual_information"]


@pytest.mark.parametrize("confidence", [-0.1, 1.1, float("nan")])
def test_a_confidence_is_a_probability(confidence: float) -> None:
    with pytest.raises(ValueError, match="expected a probability from 0 to 1"):
        AbstainBelow(confidence)


def test_shares_have_names_but_the_confidence_needs_none() -> None:
    assert AbstainBelow(0.8) == AbstainBelow(confidence=0.8)
    with pytest.raises(ValueError, match="expected a probability from 0 to 1 for at least one score"):
        AbstainBelow()


def test_a_score_that_the_answer_lacks_is_not_taken_for_one_that_passes() -> None:
    with pytest.raises(ClientError, match="without familiarity, .*: the adapter has no familiarity, which comes with"):
        AbstainBelow(familiarity=0.05).apply(prediction())


def test_the_familiarity_of_an_answer_without_the_head_passes_no_threshold() -> None:
    given = prediction(familiarity=0.9, warnings=["without_head"])
    with pytest.raises(ClientError, match="without the adapter's head, about which the familiarity says nothing"):
        AbstainBelow(familiarity=0.05).apply(given)
    assert AbstainBelow(0.8).apply(given) is given


def test_mutual_information_of_draws_that_do_not_differ_passes_no_threshold() -> None:
    """It is 0 with one draw, above another head and of plain LoRA, whatever the answer is worth."""
    same = [{"choice": "billing", "probability": 0.6, "std": 0.0}, {"choice": "sales", "probability": 0.4, "std": 0.0}]
    given = prediction(n_samples=1, mutual_information=0.0, probabilities=same, confidence=0.6)
    with pytest.raises(
        ClientError, match="draws do not differ, expected 2 different ones or more .* mutual_information"
    ):
        SPLIT.apply(given)
    assert AbstainAbove(predictive_entropy=0.5).apply(given) is given
    sure = [{"choice": "billing", "probability": 1.0, "std": 0.0}, {"choice": "sales", "probability": 0.0, "std": 0.0}]
    certain = prediction(mutual_information=0.0, probabilities=sure, confidence=1.0)
    assert SPLIT.apply(certain) is certain


class Listing(AbstainPolicy):
    """A policy of an application, which returns what it is given."""

    def __init__(self, given: Any) -> None:
        self.given = given

    def reasons(self, prediction: Prediction) -> Any:
        return self.given


def test_a_policy_of_an_application_may_return_a_list_and_must_return_something() -> None:
    reasons = SURE.reasons(prediction(confidence=0.5))
    for policy in (
        Listing([*reasons]),
        Listing([*reasons]) | SPLIT,
        SPLIT | Listing([*reasons]),
        Listing([*reasons]) & SURE,
    ):
        assert policy.apply(prediction(confidence=0.5)).abstained
    with pytest.raises(TypeError):
        Listing(None).apply(prediction())
    with pytest.raises(TypeError):
        (Listing(None) | SURE).apply(prediction())


@pytest.mark.parametrize("combine", [lambda: SURE | 0.8, lambda: SURE & None, lambda: 0.8 | SURE])
def test_a_policy_combines_with_policies_alone(combine: Callable[[], Any]) -> None:
    with pytest.raises(TypeError, match="unsupported operand"):
        combine()


@pytest.mark.parametrize(
    "thresholds",
    [
        {},
        {"mutual_information": -1.0},
        {"predictive_entropy": math.nan},
        {"predictive_entropy": math.inf},
        {"mutual_information": True},
        {"mutual_information": "0.1"},
    ],
)
def test_a_condition_needs_a_threshold(thresholds: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="expected at least one threshold, each 0 or more"):
        AbstainAbove(**thresholds)
