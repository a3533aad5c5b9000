"""Parsing of requests: the defaults of a batch, and inputs that fail alone."""

import pytest
from pydantic import TypeAdapter, ValidationError

from blora.server.errors import InvalidRequestError
from blora.server.schemas.requests import BatchRequest, PredictBody, PredictRequest

body: TypeAdapter[PredictRequest | BatchRequest] = TypeAdapter(PredictBody)


def batch(**fields: object) -> BatchRequest:
    read = body.validate_python(fields)
    assert isinstance(read, BatchRequest)
    return read


def good(read: PredictRequest | InvalidRequestError) -> PredictRequest:
    assert isinstance(read, PredictRequest)
    return read


def test_one_question() -> None:
    read = body.validate_python({"prompt": "x", "seed": 2**63 - 1, "policy": {"min_confidence": 1}})
    assert isinstance(read, PredictRequest)
    assert (read.seed, read.policy and read.policy.min_confidence) == (2**63 - 1, 1)


def test_fields_beside_inputs_are_defaults() -> None:
    read = batch(inputs=[{"prompt": "x"}, {"prompt": "y", "n_samples": 2}], n_samples=8, choices=["a", "b"])
    assert [good(item).n_samples for item in read.questions()] == [8, 2]
    assert all(good(item).choices == ["a", "b"] for item in read.questions())


def test_an_inputs_own_policy_replaces_the_default_whole() -> None:
    read = batch(inputs=[{"prompt": "x", "policy": {"max_mutual_information": 0.1}}], policy={"min_confidence": 0.5})
    policy = good(read.questions()[0]).policy
    assert policy is not None
    assert (policy.min_confidence, policy.max_mutual_information) == (None, 0.1)


def test_null_in_an_input_takes_the_default_away() -> None:
    read = batch(inputs=[{"prompt": "x", "policy": None}], policy={"min_confidence": 0.5})
    assert good(read.questions()[0]).policy is None


def test_an_inputs_question_replaces_the_default_in_either_form() -> None:
    messages = [{"role": "user", "content": "m"}]
    read = batch(inputs=[{"messages": messages}, {"prompt": "own"}, {}], prompt="default")
    assert [good(item).prompt for item in read.questions()] == [None, "own", "default"]
    assert good(read.questions()[0]).messages is not None


@pytest.mark.parametrize(
    ("item", "code", "param"),
    [
        (3, "invalid_type", None),
        (None, "invalid_type", None),
        ({}, "missing", "prompt"),
        ({"prompt": "x", "inputs": []}, "unknown_field", "inputs"),
        ({"prompt": "x", "choices": ["a"]}, "invalid_length", "choices"),
        ({"prompt": "x", "policy": {}}, "empty_policy", "policy"),
    ],
)
def test_a_bad_input_fails_in_its_place(item: object, code: str, param: str | None) -> None:
    first, second, third = batch(inputs=[{"prompt": "a"}, item, {"prompt": "b"}]).questions()
    assert isinstance(second, InvalidRequestError)
    assert (second.code, second.param) == (code, param)
    assert (good(first).prompt, good(third).prompt) == ("a", "b")


def test_a_bad_default_fails_the_whole() -> None:
    with pytest.raises(ValidationError, match="n_samples"):
        batch(inputs=[{"prompt": "x", "n_samples": 3}], n_samples=0)


def test_requests_cannot_be_changed() -> None:
    read = good(batch(inputs=[{"prompt": "x"}]).questions()[0])
    with pytest.raises(ValidationError, match="frozen"):
        read.prompt = "y"  # type: ignore[misc]
