"""Malformed requests of typed questions, and the code, path and message of each."""

import re
from typing import Any, NamedTuple

import pytest

from tests.server.decision_models import choice, digest, predicate, score
from tests.server.fakes import CHOICES, Running

SECRET = "Sesame-4711"
IMAGE = {"type": "input_image", "image_url": "data:image/png;base64,AAAA"}
CALL = {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"}
OUTPUT = {"type": "function_call_output", "call_id": "c", "output": "x"}


class Bad(NamedTuple):
    """One malformed body and the error of its response; its status is 422 unless said, and 400 for images."""

    body: Any
    code: str
    param: str | None
    message: str
    status: int = 422


def _asks(*questions: Any, **fields: Any) -> dict[str, Any]:
    return {"model": "open", "input": SECRET, "questions": list(questions), **fields}


def _reads(given: Any) -> dict[str, Any]:
    return _asks(predicate(), input=given)


def _user(content: Any, **fields: Any) -> dict[str, Any]:
    return _reads([{"role": "user", "content": content, **fields}])


DECISIONS = {
    # the body as a whole
    "a list": Bad([], "invalid_type", None, "got a list of 0"),
    "nothing": Bad({}, "missing", "model", "add it. .the first of 3"),
    "an unknown field": Bad(_asks(predicate(), temperature=0), "unknown_field", "temperature", "no field"),
    "a misspelt field": Bad({"model": "open", "imput": "x", "questions": [predicate()]}, "missing", "input", "add it"),
    # model
    "no model": Bad({"input": "x", "questions": [predicate()]}, "missing", "model", "add it"),
    "empty model": Bad(_asks(predicate(), model=""), "empty_string", "model", "empty"),
    "model of a number": Bad(_asks(predicate(), model=1), "invalid_type", "model", "got 1"),
    "unknown model": Bad(_asks(predicate(), model=SECRET), "unknown_adapter", "model", "open", 404),
    "another digest": Bad(_asks(predicate(), model=f"open@{digest(9)}"), "digest_mismatch", "model", "pin", 404),
    # input
    "no input": Bad({"model": "open", "questions": [predicate()]}, "missing", "input", "add it"),
    "empty input": Bad(_reads(""), "empty_string", "input", "empty"),
    "blank input": Bad(_reads(" \n"), "empty_string", "input", "empty"),
    "input of null": Bad(_reads(None), "invalid_type", "input", "got null, expected a string or a list"),
    "input of an object": Bad(_reads({"role": "user"}), "invalid_type", "input", "an object"),
    "no items": Bad(_reads([]), "invalid_length", "input", "list of 0 items, .* 1 to 1024"),
    "1025 items": Bad(_reads([{"role": "user", "content": "x"}] * 1025), "invalid_length", "input", "1025 items"),
    "an item of a string": Bad(_reads(["x"]), "invalid_type", r"input\[0\]", "a string of 1"),
    "an item without role": Bad(_reads([{"content": "x"}]), "missing", r"input\[0\].role", "add it"),
    "an item of another role": Bad(
        _reads([{"role": "tool", "content": "x"}]), "invalid_value", r"input\[0\].role", "'user' or 'developer'"
    ),
    "an item of a list's role": Bad(
        _reads([{"role": [], "content": "x"}]), "invalid_value", r"input\[0\].role", "list"
    ),
    "an item of another type": Bad(
        _reads([{"type": "reasoning"}]), "invalid_value", r"input\[0\].type", "'message' or 'function_call'"
    ),
    "an item with a name": Bad(_user("x", name="y"), "unknown_field", r"input\[0\].name", "no field"),
    "no content": Bad(_reads([{"role": "user"}]), "missing", r"input\[0\].content", "add it"),
    "content of a number": Bad(_user(3), "invalid_type", r"input\[0\].content", "got 3, expected a string or a list"),
    "empty content": Bad(_user(""), "empty_string", r"input\[0\].content", "empty"),
    "no parts": Bad(_user([]), "empty_string", r"input\[0\].content", "empty"),
    "an image": Bad(_user([IMAGE]), "not_text", r"input\[0\].content\[0\]", "reads text only"),
    "a later image": Bad(
        _user([{"type": "input_text", "text": "x"}, IMAGE]), "not_text", r"input\[0\].content\[1\]", "reads text only"
    ),
    "a part of a string": Bad(_user(["x"]), "invalid_type", r"input\[0\].content\[0\]", "expected an object"),
    "a part without type": Bad(_user([{"text": "x"}]), "missing", r"input\[0\].content\[0\].type", "add it"),
    "a part of chat's type": Bad(
        _user([{"type": "text", "text": "x"}]), "invalid_value", r"input\[0\].content\[0\].type", "'input_text'"
    ),
    "a part without text": Bad(_user([{"type": "input_text"}]), "missing", r"input\[0\].content\[0\].text", "add it"),
    "JSON of a number": Bad(
        _user([{"type": "input_json", "data": 1}]), "invalid_type", r"input\[0\].content\[0\].data.*", "got 1"
    ),
    "an assistant's input": Bad(
        _reads([{"role": "assistant", "content": [{"type": "input_text", "text": "x"}]}]),
        "invalid_value",
        r"input\[0\].content\[0\].type",
        "'output_text' or 'refusal'",
    ),
    "a call without name": Bad(
        _reads([{"type": "function_call", "call_id": "c", "arguments": ""}]), "missing", r"input\[0\].name", "add it"
    ),
    "an output without call": Bad(_reads([OUTPUT]), "invalid_value", r"input\[0\].call_id", "No earlier item"),
    "an output before its call": Bad(_reads([OUTPUT, CALL]), "invalid_value", r"input\[0\].call_id", "No earlier"),
    "an output of an image": Bad(
        _reads([CALL, {**OUTPUT, "output": [IMAGE]}]), "not_text", r"input\[1\].output\[0\]", "text only"
    ),
    # questions
    "no questions": Bad(_asks(), "invalid_length", "questions", "at least 1"),
    "questions of an object": Bad(_asks() | {"questions": {}}, "invalid_type", "questions", "valid list"),
    "401 questions": Bad(_asks(*[predicate()] * 401), "invalid_length", "questions", "401 items, expected at most 400"),
    "a question of a string": Bad(_asks("x"), "invalid_type", r"questions\[0\]", "expected an object"),
    "a question of null": Bad(_asks(predicate(), None), "invalid_type", r"questions\[1\]", "got null"),
    "a question without type": Bad(_asks({"instructions": "x"}), "missing", r"questions\[0\].type", "add it"),
    "a question of another type": Bad(
        _asks(predicate(type="noul")), "invalid_value", r"questions\[0\].type", "'predicate' or 'choice' or 'score'"
    ),
    "a box": Bad(_asks(predicate(type="box")), "not_text", r"questions\[0\]", "text only"),
    "no instructions": Bad(_asks({"type": "predicate"}), "missing", r"questions\[0\].instructions", "add it"),
    "empty instructions": Bad(
        _asks(predicate(instructions="")), "empty_string", r"questions\[0\].instructions", "empty"
    ),
    "instructions of null": Bad(
        _asks(predicate(instructions=None)), "invalid_type", r"questions\[0\].instructions", "got null"
    ),
    "instructions of an image": Bad(
        _asks(predicate(instructions=[IMAGE])), "not_text", r"questions\[0\].instructions\[0\]", "text only"
    ),
    "a name of a number": Bad(_asks(predicate(name=1)), "invalid_type", r"questions\[0\].name", "got 1"),
    "an empty name": Bad(_asks(predicate(name="")), "empty_string", r"questions\[0\].name", "empty"),
    "a long name": Bad(_asks(predicate(name="x" * 257)), "invalid_length", r"questions\[0\].name", "257 .* 256"),
    "a predicate with choices": Bad(
        _asks(predicate(choices=[])), "unknown_field", r"questions\[0\].choices", "no field"
    ),
    "no choices": Bad(_asks({"type": "choice", "instructions": "x"}), "missing", r"questions\[0\].choices", "add it"),
    "one choice": Bad(_asks(choice("a")), "invalid_length", r"questions\[0\].choices", "at least 2"),
    "256 choices": Bad(
        _asks(choice(*map(str, range(256)))), "invalid_length", r"questions\[0\].choices", "at most 255"
    ),
    "a choice of a string": Bad(
        _asks(choice(choices=["a", "b"])), "invalid_type", r"questions\[0\].choices\[0\]", "object"
    ),
    "a choice without value": Bad(
        _asks(choice(choices=[{"value": "a"}, {}])), "missing", r"questions\[0\].choices\[1\].value", "add it"
    ),
    "a value of a number": Bad(
        _asks(predicate(), predicate(), choice(1, "a")),
        "invalid_type",
        r"questions\[2\].choices\[0\].value",
        "got 1, expected a string or a boolean",
    ),
    "a value of null": Bad(
        _asks(choice(choices=[{"value": None}, {"value": "a"}])),
        "invalid_type",
        r"questions\[0\].choices\[0\].value",
        "got null",
    ),
    "an empty value": Bad(_asks(choice("a", "")), "empty_string", r"questions\[0\].choices\[1\].value", "blank"),
    "a blank value": Bad(_asks(choice("a", " \u200b")), "empty_string", r"questions\[0\].choices\[1\].value", "blank"),
    "equal values": Bad(
        _asks(choice(SECRET, "b", SECRET)), "duplicate_choices", r"questions\[0\].choices\[2\].value", "the same"
    ),
    "values equal but for spaces": Bad(
        _asks(choice("a", " a")), "duplicate_choices", r"questions\[0\].choices\[1\].value", "white space"
    ),
    "equal booleans": Bad(
        _asks(choice(True, "true", True)), "duplicate_choices", r"questions\[0\].choices\[2\].value", "the same"
    ),
    "choices that read the same": Bad(
        _asks(choice(choices=[{"value": "a: b"}, {"value": "a", "description": "b"}])),
        "duplicate_choices",
        r"questions\[0\]",
        "the same",
    ),
    "a description of a number": Bad(
        _asks(choice(choices=[{"value": "a", "description": 1}, {"value": "b"}])),
        "invalid_type",
        r"questions\[0\].choices\[0\].description",
        "got 1",
    ),
    "an odd field of a choice": Bad(
        _asks(choice(choices=[{"value": "a", "a b": 1}, {"value": "b"}])),
        "unknown_field",
        r"questions\[0\].choices\[0\]\.\(a name.*\)",
        "no field",
    ),
    "one level": Bad(_asks(score("a")), "invalid_length", r"questions\[0\].levels", "at least 2"),
    "a level without label": Bad(
        _asks(score(levels=[{"label": "a"}, {}])), "missing", r"questions\[0\].levels\[1\].label", "add it"
    ),
    "equal levels": Bad(_asks(score("a", "a")), "duplicate_choices", r"questions\[0\].levels\[1\].label", "the same"),
    "a boolean level": Bad(
        _asks(score(levels=[{"label": True}, {"label": "b"}])),
        "invalid_type",
        r"questions\[0\].levels\[0\].label",
        "true",
    ),
    # questions that the model does not know
    "another choice": Bad(
        _asks(choice("a", "b"), model="triage"), "unknown_question", r"questions\[0\]", "'queue' .choice of 'billing'"
    ),
    "a choice too many": Bad(
        _asks(choice(*CHOICES, SECRET, name="queue"), model="triage"),
        "unknown_question",
        r"questions\[0\]",
        "same values",
    ),
    "another predicate": Bad(_asks(predicate(), model="triage"), "unknown_question", r"questions\[0\]", "'urgent'"),
    "a question of another model": Bad(
        _asks(predicate(name="urgent"), choice(*CHOICES, name="queue"), model="triage.urgent"),
        "unknown_question",
        r"questions\[1\]",
        "'triage.urgent' does not answer",
    ),
    # what is ours, and what is only accepted
    "refuse of 1": Bad(_asks(predicate(), refuse=1), "invalid_type", "refuse", "valid boolean"),
    "an empty policy": Bad(_asks(predicate(), policy={}), "empty_policy", "policy", "min_confidence 0"),
    "a misspelt policy": Bad(
        _asks(predicate(), policy={"min_confidnce": 1}), "unknown_field", "policy.min_confidnce", "no field"
    ),
    "a target that is not proved": Bad(
        _asks(predicate(), policy={"target_risk": 0.05}), "not_calibrated", "policy.target_risk", "not calibrated"
    ),
    "a cache key of a number": Bad(_asks(predicate(), prompt_cache_key=1), "invalid_type", "prompt_cache_key", "got 1"),
    "another cache mode": Bad(
        _asks(predicate(), prompt_cache_options={"mode": "x"}), "invalid_value", "prompt_cache_options.mode", "implicit"
    ),
    # limits and the model
    "a long input": Bad(_reads("word " * 4097), "prompt_too_long", "input", "4100 tokens", 413),
    "long instructions": Bad(
        _asks(predicate(), predicate(instructions="word " * 4097)),
        "prompt_too_long",
        r"questions\[1\].instructions",
        "4098 tokens",
        413,
    ),
    "instructions that cannot be packed": Bad(
        _asks(predicate(instructions="Is it UNPACKABLE?")),
        "invalid_prompt",
        r"questions\[0\].instructions",
        "be packed",
    ),
    "long choices": Bad(_asks(choice("a" * 500_000, "b")), "prompt_too_long", r"questions\[0\]", "choices have", 413),
    "a large body": Bad(_reads("x" * 2**20), "body_too_large", None, "longer than", 413),
    "an input that cannot be packed": Bad(_reads("UNPACKABLE"), "invalid_prompt", "input", "cannot be packed"),
    "a model without numbers": Bad(_reads("NAN"), "non_finite", None, "NaN or infinity", 500),
}


def _states(state: Any = SECRET, model: str = "open", **questions: Any) -> dict[str, Any]:
    return {"model": model, "state": state, "questions": questions}


NOUL = {"type": "noul", "instructions": "Is it?"}
PICK = {"type": "choice", "criteria": {"a": None, "b": None}}

SYSTEMONE = {
    "nothing": Bad({}, "missing", "model", "add it"),
    "an unknown field": Bad(_states(q=NOUL) | {"stream": True}, "unknown_field", "stream", "no field"),
    "assets": Bad(_states(q=NOUL) | {"assets": {"a": {}}}, "not_text", "assets", "text only"),
    "assets of nothing": Bad(_states(q=NOUL) | {"assets": {}}, "not_text", "assets", "text only"),
    "images": Bad(_states(q=NOUL) | {"images": ["x"]}, "not_text", "images", "text only"),
    "state of a number": Bad(_states(3, q=NOUL), "invalid_type", "state", "a string, an object or an array"),
    "state of null": Bad(_states(None, q=NOUL), "invalid_type", "state", "got null"),
    "empty state": Bad(_states(" ", q=NOUL), "empty_string", "state", "empty"),
    "state of an empty object": Bad(_states({}, q=NOUL), "empty_string", "state", "empty"),
    "state of an empty array": Bad(_states([], q=NOUL), "empty_string", "state", "empty"),
    "unknown model": Bad(_states(q=NOUL, model=SECRET), "unknown_adapter", "model", "open", 404),
    "no questions": Bad(_states(), "invalid_length", "questions", "at least 1"),
    "questions of a list": Bad(_states() | {"questions": [NOUL]}, "invalid_type", "questions", "an object"),
    "a question of null": Bad(_states(q=None), "invalid_type", "questions.q", "got null"),
    "a question without type": Bad(_states(q={"instructions": "x"}), "missing", "questions.q.type", "add it"),
    "a question of another type": Bad(
        _states(q={**NOUL, "type": "predicate"}), "invalid_value", "questions.q.type", "'noul' or 'choice'"
    ),
    "a box": Bad(_states(q={"type": "box", "instructions": "dog"}), "not_text", "questions.q", "text only"),
    "an odd name": Bad(_states(q=NOUL, **{"Is it?": 3}), "invalid_type", r"questions\[1\]", "got 3"),
    "a long name": Bad(_states(**{"x" * 257: NOUL}), "invalid_length", r"questions\[0\]", "257 characters"),
    "a noul without a question": Bad(_states(q={"type": "noul"}), "missing", "questions.q.instructions", "neither"),
    "a noul of empty criteria": Bad(
        _states(q={"type": "noul", "criteria": {"true": None}}), "missing", "questions.q.instructions", "neither"
    ),
    "a noul of an empty object": Bad(
        _states(q={"type": "noul", "instructions": {}}), "missing", "questions.q.instructions", "neither"
    ),
    "a noul of blank texts": Bad(
        _states(q={"type": "noul", "instructions": " ", "criteria": {"true": ""}}),
        "missing",
        "questions.q.instructions",
        "neither",
    ),
    "instructions of a number": Bad(
        _states(q={**NOUL, "instructions": 1}), "invalid_type", "questions.q.instructions", "got 1"
    ),
    "no criteria": Bad(_states(q={"type": "choice"}), "missing", "questions.q.criteria", "add it"),
    "one criterion": Bad(
        _states(q={**PICK, "criteria": {"a": None}}), "invalid_length", "questions.q.criteria", "least 2"
    ),
    "criteria of a list": Bad(
        _states(q={**PICK, "criteria": ["a", "b"]}), "invalid_type", "questions.q.criteria", "object"
    ),
    "a criterion of a number": Bad(
        _states(q={**PICK, "criteria": {"a": 1, "b": None}}), "invalid_type", "questions.q.criteria.a", "got 1"
    ),
    "a blank label": Bad(
        _states(q={**PICK, "criteria": {" ": "", "b": ""}}), "empty_string", "questions.q.criteria", "blank"
    ),
    "equal labels": Bad(
        _states(q={**PICK, "criteria": {"b ": "", "b": ""}}), "duplicate_choices", "questions.q.criteria", "the same"
    ),
    "one level": Bad(
        _states(q={"type": "score", "criteria": ["a"]}), "invalid_length", "questions.q.criteria", "at least 2"
    ),
    "a level of null": Bad(
        _states(q={"type": "score", "criteria": ["a", None]}), "invalid_type", r"questions.q.criteria\[1\]", "got null"
    ),
    "equal levels": Bad(
        _states(q={"type": "score", "criteria": ["a", "a"]}), "duplicate_choices", r"questions.q.criteria\[1\]", "same"
    ),
    "another question": Bad(_states(q=PICK, model="triage"), "unknown_question", "questions.q", "'queue'"),
    "a policy of a number": Bad(_states(q=NOUL) | {"policy": 1}, "invalid_type", "policy", "got 1"),
    "a long state": Bad(_states("word " * 4097, q=NOUL), "prompt_too_long", "state", "tokens", 413),
}


@pytest.mark.parametrize(
    ("path", "bad"),
    [
        *(pytest.param("/v1/decisions", bad, id=f"decisions: {name}") for name, bad in DECISIONS.items()),
        *(pytest.param("/v1/systemone", bad, id=f"systemone: {name}") for name, bad in SYSTEMONE.items()),
    ],
)
async def test_a_bad_body_is_refused_with_its_path(server: Running, path: str, bad: Bad) -> None:
    response = await server.client.post(path, json=bad.body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400 if bad.code == "not_text" else bad.status, bad.code)
    assert error.keys() == {"message", "type", "param", "code"}
    assert re.search(bad.message, error["message"])
    assert (error["param"] is None) == (bad.param is None)
    assert bad.param is None or re.fullmatch(bad.param, error["param"])
    assert SECRET not in response.text
    counted = [
        await server.metric("blora_requests_total", adapter=name, outcome=bad.code) for name in ("open", "unknown")
    ]
    assert sum(counted) == 1


PART = '{"type": "input_json", "data": [HUGE]}'
NOT_FINITE = {
    "state": ("/v1/systemone", '"state": {"a": [HUGE]}, "questions": {"q": {"type": "noul"}}'),
    "questions.q.instructions": (
        "/v1/systemone",
        '"state": "x", "questions": {"q": {"type": "noul", "instructions": [HUGE]}}',
    ),
    "questions.q.criteria.false": (
        "/v1/systemone",
        '"state": "x", "questions": {"q": {"type": "noul", "criteria": {"false": [HUGE]}}}',
    ),
    "questions.q.criteria[1]": (
        "/v1/systemone",
        '"state": "x", "questions": {"q": {"type": "score", "criteria": ["a", [HUGE]]}}',
    ),
    "questions.q.criteria.b": (
        "/v1/systemone",
        '"state": "x", "questions": {"q": {"type": "choice", "criteria": {"a": null, "b": [HUGE]}}}',
    ),
    "questions.q.criteria[0]": (
        "/v1/systemone",
        '"state": "x", "questions": {"q": {"type": "choice", "criteria": {"not a field": [HUGE], "b": null}}}',
    ),
    "input[0].content[0].data": (
        "/v1/decisions",
        f'"input": [{{"role": "user", "content": [{PART}]}}], "questions": [{{"type": "predicate", "instructions": "?"}}]',
    ),
    "questions[0].instructions[0].data": (
        "/v1/decisions",
        f'"input": "x", "questions": [{{"type": "predicate", "instructions": [{PART}]}}]',
    ),
}


@pytest.mark.parametrize("param", NOT_FINITE)
async def test_a_number_beyond_all_in_free_json_is_refused_with_its_path(server: Running, param: str) -> None:
    path, fields = NOT_FINITE[param]
    body = f'{{"model": "open", {fields.replace("HUGE", "-1e999")}}}'
    response = await server.client.post(path, content=body, headers={"content-type": "application/json"})
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (422, "not_finite", param)
    assert "send a finite one" in error["message"]
