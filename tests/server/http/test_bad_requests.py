"""Malformed requests, and the status, code and message of each."""

import re
from typing import Any, NamedTuple

import pytest

from tests.server.fakes import OPEN_DIGEST, TRIAGE_DIGEST, Running

SECRET = "Sesame-4711"
GOOD = {"prompt": SECRET}


class Bad(NamedTuple):
    """One malformed body and its expected response."""

    body: Any
    status: int
    code: str
    param: str | None
    message: str


def _with(**fields: Any) -> dict[str, Any]:
    return {**GOOD, **fields}


BAD_BODIES = {
    # the body as a whole
    "a list": Bad([], 422, "invalid_type", None, "got a list of 0"),
    "a number": Bad(3, 422, "invalid_type", None, "got 3, expected"),
    "a string": Bad("x", 422, "invalid_type", None, "got a string of 1 character,"),
    "an unknown field": Bad(_with(promt="x"), 422, "unknown_field", "promt", "no field of this name"),
    "an odd field": Bad(_with(**{"a b": 1}), 422, "unknown_field", r"\(a name.*\)", "no field of this name"),
    # the question
    "nothing": Bad({}, 422, "missing", "prompt", "neither prompt nor messages"),
    "nulls": Bad({"prompt": None, "messages": None}, 422, "missing", "prompt", "neither"),
    "both": Bad(
        _with(messages=[{"role": "user", "content": SECRET}]),
        422,
        "conflict",
        "messages",
        "both prompt and messages",
    ),
    "empty prompt": Bad({"prompt": ""}, 422, "empty_string", "prompt", "text is empty"),
    "prompt of a number": Bad({"prompt": 5}, 422, "invalid_type", "prompt", "got 5, expected.*str"),
    "prompt of a list": Bad({"prompt": ["a"]}, 422, "invalid_type", "prompt", "a list of 1"),
    "unpackable": Bad({"prompt": "UNPACKABLE"}, 422, "invalid_prompt", "prompt", "cannot be packed"),
    "no messages": Bad({"messages": []}, 422, "invalid_length", "messages", "at least 1"),
    "message of a string": Bad({"messages": ["hi"]}, 422, "invalid_type", "messages.0", "a string of 2"),
    "unknown role": Bad(
        {"messages": [{"role": SECRET, "content": "x"}]},
        422,
        "invalid_value",
        "messages.0.role",
        "'system', 'user' or 'assistant'",
    ),
    "no role": Bad({"messages": [{"content": "x"}]}, 422, "missing", "messages.0.role", "add it"),
    "no content": Bad({"messages": [{"role": "user"}]}, 422, "missing", "messages.0.content", "add"),
    "empty content": Bad(
        {"messages": [{"role": "user", "content": ""}]},
        422,
        "empty_string",
        "messages.0.content",
        "text is empty",
    ),
    "content of parts": Bad(
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "x"}]}]},
        422,
        "invalid_type",
        "messages.0.content",
        "a list of 1",
    ),
    "message with a name": Bad(
        {"messages": [{"role": "user", "content": "x", "name": "y"}]},
        422,
        "unknown_field",
        "messages.0.name",
        "no field of this name",
    ),
    # choices
    "one choice": Bad(_with(choices=["a"]), 422, "invalid_length", "choices", "at least 2"),
    "no choice": Bad(_with(choices=[]), 422, "invalid_length", "choices", "list of 0"),
    "256 choices": Bad(_with(choices=[str(i) for i in range(256)]), 422, "invalid_length", "choices", "at most 255"),
    "equal choices": Bad(_with(choices=[SECRET, SECRET]), 422, "duplicate_choices", "choices", "choices are the same"),
    "choices equal but for spaces": Bad(
        _with(choices=["a", " a\n"]), 422, "duplicate_choices", "choices", "white space"
    ),
    "empty choice": Bad(_with(choices=["a", ""]), 422, "empty_string", "choices.1", "text is empty"),
    "blank choice": Bad(_with(choices=["a", " \t"]), 422, "empty_string", "choices", "choice is blank"),
    "choice of a number": Bad(_with(choices=["a", 1]), 422, "invalid_type", "choices.1", "got 1"),
    "choices in a string": Bad(_with(choices="a,b"), 422, "invalid_type", "choices", "valid list"),
    "choices in an object": Bad(_with(choices={"a": 1}), 422, "invalid_type", "choices", "an object"),
    "no choices where needed": Bad(_with(adapter="open"), 422, "missing", "choices", "no fixed ones"),
    # scoring, n_samples, seed, return_samples
    "unknown scoring": Bad(_with(scoring="logits"), 422, "invalid_value", "scoring", "'text' or 'label'"),
    "no samples": Bad(_with(n_samples=0), 422, "out_of_range", "n_samples", "got 0, .* 1"),
    "negative samples": Bad(_with(n_samples=-1), 422, "out_of_range", "n_samples", "got -1"),
    "too many samples": Bad(_with(n_samples=65), 422, "out_of_range", "n_samples", "at most 64"),
    "enormously many": Bad(_with(n_samples=10**30), 422, "out_of_range", "n_samples", "expected at most 64"),
    "samples in a string": Bad(_with(n_samples="16"), 422, "invalid_type", "n_samples", "valid integer"),
    "samples in a float": Bad(_with(n_samples=16.0), 422, "invalid_type", "n_samples", "got 16.0"),
    "samples of true": Bad(_with(n_samples=True), 422, "invalid_type", "n_samples", "got true"),
    "negative seed": Bad(_with(seed=-1), 422, "out_of_range", "seed", "got -1"),
    "seed of 2^63": Bad(_with(seed=2**63), 422, "out_of_range", "seed", str(2**63 - 1)),
    "seed of a half": Bad(_with(seed=0.5), 422, "invalid_type", "seed", "got 0.5"),
    "return_samples of 1": Bad(_with(return_samples=1), 422, "invalid_type", "return_samples", "valid boolean"),
    "return_samples of null": Bad(_with(return_samples=None), 422, "invalid_type", "return_samples", "got null"),
    # policy
    "empty policy": Bad(_with(policy={}), 422, "empty_policy", "policy", "min_confidence 0"),
    "policy of nulls": Bad(_with(policy={"min_confidence": None}), 422, "empty_policy", "policy", "leave `policy` out"),
    "misspelt policy": Bad(
        _with(policy={"min_confidnce": 0.9}), 422, "unknown_field", "policy.min_confidnce", "correct its spelling"
    ),
    "policy of a number": Bad(_with(policy=0.9), 422, "invalid_type", "policy", "got 0.9"),
    "policy of a list": Bad(_with(policy=[0.9]), 422, "invalid_type", "policy", "a list of 1"),
    "confidence above one": Bad(
        _with(policy={"min_confidence": 1.01}),
        422,
        "out_of_range",
        "policy.min_confidence",
        "got 1.01, .* 1",
    ),
    "confidence below zero": Bad(
        _with(policy={"min_confidence": -0.1}), 422, "out_of_range", "policy.min_confidence", "0.1"
    ),
    "confidence in a string": Bad(
        _with(policy={"min_confidence": "0.9"}),
        422,
        "invalid_type",
        "policy.min_confidence",
        "valid number",
    ),
    "confidence of true": Bad(
        _with(policy={"min_confidence": True}), 422, "invalid_type", "policy.min_confidence", "true"
    ),
    "negative entropy": Bad(
        _with(policy={"max_predictive_entropy": -1e-9}),
        422,
        "out_of_range",
        "policy.max_predictive_entropy",
        "0",
    ),
    "negative information": Bad(
        _with(policy={"max_mutual_information": -1}),
        422,
        "out_of_range",
        "policy.max_mutual_information",
        "got -1",
    ),
    "target of zero": Bad(
        _with(policy={"target_risk": 0}), 422, "out_of_range", "policy.target_risk", "greater than 0"
    ),
    "target of one": Bad(_with(policy={"target_risk": 1}), 422, "out_of_range", "policy.target_risk", "less than 1"),
    "target in a string": Bad(
        _with(policy={"target_risk": "0.05"}), 422, "invalid_type", "policy.target_risk", "valid number"
    ),
    "target and threshold": Bad(
        _with(policy={"target_risk": 0.05, "min_confidence": 0.9}),
        422,
        "conflict",
        "policy.target_risk",
        "one of them|one or the other",
    ),
    "target without calibration": Bad(
        _with(policy={"target_risk": 0.05}), 422, "not_calibrated", "policy.target_risk", "send thresholds"
    ),
    # adapter
    "unknown adapter": Bad(_with(adapter=SECRET), 404, "unknown_adapter", "adapter", "one of open, triage"),
    "the base model's name": Bad(_with(adapter="fake"), 404, "unknown_adapter", "adapter", "loaded"),
    "another digest": Bad(_with(adapter=f"triage@{OPEN_DIGEST}"), 404, "digest_mismatch", "adapter", TRIAGE_DIGEST),
    "half a digest": Bad(_with(adapter=f"triage@{TRIAGE_DIGEST[:20]}"), 404, "digest_mismatch", "adapter", "pin"),
    "empty adapter": Bad(_with(adapter=""), 422, "empty_string", "adapter", "leave the field out"),
    "adapter of a number": Bad(_with(adapter=1), 422, "invalid_type", "adapter", "got 1"),
    # batches
    "empty batch": Bad({"inputs": []}, 422, "invalid_length", "inputs", "at least 1"),
    "batch of an object": Bad({"inputs": GOOD}, 422, "invalid_type", "inputs", "valid list"),
    "batch of null": Bad({"inputs": None}, 422, "invalid_type", "inputs", "got null"),
    "bad default": Bad({"inputs": [GOOD], "n_samples": "16"}, 422, "invalid_type", "n_samples", "valid integer"),
    "misspelt default": Bad({"inputs": [GOOD], "polcy": {}}, 422, "unknown_field", "polcy", "no field of this name"),
    # limits
    "a long prompt": Bad({"prompt": "word " * 4097}, 413, "prompt_too_long", "prompt", "4097 tokens, .* 4096"),
    "a large batch": Bad({"inputs": [GOOD] * 257}, 413, "too_many_inputs", "inputs", "257 inputs, .* 256"),
    "a large body": Bad({"prompt": "x" * 2**20}, 413, "body_too_large", None, "longer than 1048576 bytes"),
    # the model
    "a failing model": Bad({"prompt": "POISON"}, 500, "model_failure", None, "The model failed"),
    "a model without numbers": Bad({"prompt": "NAN"}, 500, "non_finite", None, "NaN or infinity"),
    "a bug": Bad({"prompt": "BUG"}, 500, "internal_error", None, "report this as a bug"),
}


@pytest.mark.parametrize("name", BAD_BODIES)
async def test_a_bad_body_is_refused_with_a_reason(server: Running, name: str) -> None:
    bad = BAD_BODIES[name]
    response = await server.client.post("/v1/predict", json=bad.body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (bad.status, bad.code)
    assert response.json().keys() == {"error"}
    assert error.keys() == {"message", "type", "param", "code"}
    assert re.search(bad.message, error["message"])
    assert (error["param"] is None) == (bad.param is None)
    assert bad.param is None or re.fullmatch(bad.param, error["param"])
    assert SECRET not in response.text


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/nowhere", 404, "not_found"),
        ("POST", "/v1/predict/", 404, "not_found"),
        ("GET", "/v1/predict", 405, "method_not_allowed"),
        ("POST", "/livez", 405, "method_not_allowed"),
    ],
)
async def test_wrong_turns(server: Running, method: str, path: str, status: int, code: str) -> None:
    response = await server.client.request(method, path)
    assert (response.status_code, response.json()["error"]["code"]) == (status, code)
    assert ("allow" in response.headers) == (status == 405)


async def test_every_error_is_counted_by_code(server: Running) -> None:
    await server.client.get("/nowhere")
    await server.client.post("/v1/predict", json={"prompt": ""})
    await server.client.post("/v1/predict", json=_with(adapter=SECRET))
    await server.client.post("/v1/predict", json={"prompt": "x" * 2**20})
    await server.client.post("/v1/predict", json={"prompt": "POISON"})
    for code in ("not_found", "empty_string", "unknown_adapter", "body_too_large"):
        assert await server.metric("blora_requests_total", adapter="unknown", outcome=code) == 1
    assert await server.metric("blora_requests_total", adapter="triage", outcome="model_failure") == 1
    assert SECRET not in (await server.client.get("/metrics")).text
