"""Bounds on the time and on the number of problems of validation, for any body."""

import json
import time
from typing import Any

import pytest
from pydantic import ValidationError

from blora.server.schemas import requests, validation
from tests.server.fakes import FakeEngine, Running, handle, running

MEGABYTE = {
    "messages": (b'{"messages":[' + b"{}," * 340_000 + b"{}]}", "body_too_large"),
    "inputs": (b'{"inputs":[' + b"0," * 520_000 + b"0]}", "body_too_large"),
    "lists in lists": (b'{"prompt":[' + b"[[[[]]]]," * 110_000 + b"0]}", "body_too_large"),
    "keys": (b"{" + b",".join(b'"%d":0' % i for i in range(90_000)) + b"}", "body_too_large"),
}


@pytest.mark.parametrize("name", MEGABYTE)
async def test_a_megabyte_of_values_is_not_parsed(server: Running, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    body, code = MEGABYTE[name]
    monkeypatch.setattr("blora.server.http.strict_json.from_json", lambda *args, **kwargs: pytest.fail("it was parsed"))
    response = await server.client.post("/v1/predict", content=body, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (413, code)


async def test_a_megabyte_of_text_full_of_brackets_is_a_few_values(server: Running) -> None:
    prompt = '{["\\' * 200_000
    response = await server.client.post("/v1/predict", json={"prompt": prompt[:500_000]})
    assert response.json()["error"]["code"] == "prompt_too_long"


@pytest.mark.parametrize(
    ("body", "status", "code", "param"),
    [
        ({"messages": [{}] * 257}, 422, "invalid_length", "messages"),
        ({"messages": [{}] * 30_000}, 422, "invalid_length", "messages"),
        ({"inputs": [0] * 60_000}, 413, "too_many_inputs", "inputs"),
        ({"prompt": "x", **{f"x{i}": 0 for i in range(30_000)}}, 422, "unknown_field", "x0"),
        ({"prompt": "x", "policy": {f"x{i}": 0 for i in range(30_000)}}, 422, "unknown_field", "policy.x0"),
    ],
)
async def test_problems_do_not_grow_with_the_body(
    server: Running, monkeypatch: pytest.MonkeyPatch, body: Any, status: int, code: str, param: str
) -> None:
    found: list[int] = []
    invalid_request = validation.invalid_request

    def counting(details: Any) -> Any:
        found.append(len(details))
        return invalid_request(details)

    monkeypatch.setattr("blora.server.app.invalid_request", counting)
    monkeypatch.setattr("blora.server.schemas.requests.invalid_request", counting)
    response = await server.client.post("/v1/predict", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (status, code, param)
    assert sum(found) <= 2000


async def test_no_input_is_looked_at_before_it_is_known_that_there_are_not_too_many(
    engine: FakeEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requests, "_question", lambda *args: pytest.fail("an input was looked at"))
    async with running(engine, max_inputs=2) as server:
        response = await server.client.post("/v1/predict", json={"inputs": [{"prompt": "x"}] * 3})
    assert response.json()["error"]["code"] == "too_many_inputs"


def test_defaults_are_validated_once_for_all_inputs(monkeypatch: pytest.MonkeyPatch) -> None:
    looked_at: list[str] = []
    seen = requests.seen

    def counting(choice: str) -> str:
        looked_at.append(choice)
        return seen(choice)

    monkeypatch.setattr(requests, "seen", counting)
    batch = requests.BatchRequest(inputs=[{"prompt": "x"}] * 256, choices=["a", "b"])  # type: ignore[list-item]
    assert len(batch.questions()) == 256
    assert looked_at == ["a", "b"]


@pytest.mark.parametrize(
    "choices", [["caf\u00e9", "cafe\u0301"], ["a", "a\u200b"], ["a", "\u2060a"], ["so\u00adda", "soda"]]
)
async def test_choices_that_look_the_same_are_the_same(server: Running, choices: list[str]) -> None:
    response = await server.client.post("/v1/predict", json={"prompt": "x", "choices": choices})
    assert response.json()["error"]["code"] == "duplicate_choices"


@pytest.mark.parametrize("choice", ["\u200b", "\ufeff\u200d", "\u200c \u200c"])
async def test_a_choice_that_nobody_sees_is_blank(server: Running, choice: str) -> None:
    response = await server.client.post("/v1/predict", json={"prompt": "x", "choices": ["a", choice]})
    assert response.json()["error"]["code"] == "empty_string"


def test_a_letter_with_a_hundred_thousand_marks_takes_no_longer_than_as_many_letters() -> None:
    marks = "a" + "\u0315\u0300" * 100_000  # in quadratic time 40 s
    started = time.perf_counter()
    question = requests.PredictRequest(prompt="x", choices=[marks, "b"])
    assert time.perf_counter() - started < 10
    assert question.choices == [marks, "b"]


def test_letters_with_as_many_marks_as_in_any_language_are_compared_in_one_form() -> None:
    ways = ["o" + "\u0302\u0301" * 15, "\u1ed1" + "\u0302\u0301" * 14]
    with pytest.raises(ValidationError, match="Two choices are the same"):
        requests.PredictRequest(prompt="x", choices=ways)


async def test_a_body_of_the_wrong_kind_is_told_in_words_of_json(server: Running) -> None:
    response = await server.client.post(
        "/v1/predict", content=json.dumps({"inputs": ["text"]}), headers={"content-type": "application/json"}
    )
    [prediction] = response.json()["predictions"]
    assert prediction["error"]["message"] == "got a string of 4 characters, expected an object: correct the field"


# 2**12 probabilities for each input, under 64 draws.
SAMPLED = handle("sampled", "sha256:" + "7" * 64, choices=tuple(map(str, range(64))), n_samples=64)


async def asked(engine: FakeEngine, inputs: list[dict[str, Any]]) -> Any:
    """Return the response to a batch with samples, after forgetting earlier passes."""
    async with running(engine, default_adapter="sampled") as server:
        engine.batches.clear()
        return await server.client.post("/v1/predict", json={"inputs": inputs, "return_samples": True})


@pytest.mark.parametrize(("n_inputs", "n_samples"), [(65, 64), (256, 17)])
async def test_a_batch_with_too_many_sample_values_is_refused_before_any_pass(n_inputs: int, n_samples: int) -> None:
    engine = FakeEngine(handles=(SAMPLED,))
    response = await asked(engine, [{"prompt": "x", "n_samples": n_samples}] * n_inputs)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (413, "too_large", "return_samples")
    assert f"got {n_inputs * n_samples * 64} sample values" in error["message"]
    assert engine.batches == []


async def test_a_batch_with_the_most_sample_values_is_answered_beside_inputs_without_any() -> None:
    without: list[dict[str, Any]] = [{"return_samples": False}, {"adapter": "nobody"}, {"n_samples": 65}, {"seed": "x"}]
    inputs = [{"prompt": "x"}] * 64 + [{"prompt": "x"} | more for more in without]
    found = (await asked(FakeEngine(handles=(SAMPLED,)), inputs)).json()["predictions"]
    assert [len(one["samples"]) for one in found[:64]] == [64] * 64
    assert ["error" in one for one in found[64:]] == [False, True, True, True]
    assert "samples" not in found[64]
