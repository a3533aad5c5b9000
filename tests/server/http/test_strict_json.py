"""Bodies that are not JSON or not declared as JSON."""

import gzip
import json
import time

import pytest

from blora.server.errors import TooLargeError
from blora.server.http.strict_json import parse
from tests.server.fakes import Running

GOOD = {"prompt": "x"}

BAD_JSON = {
    "nothing": (b"", "missing"),
    "null": (b"null", "invalid_type"),
    "half an object": (b'{"prompt": "x"', "invalid_json"),
    "two objects": (b'{"prompt": "x"} {}', "invalid_json"),
    "single quotes": (b"{'prompt': 'x'}", "invalid_json"),
    "NaN": (b'{"prompt": "x", "policy": {"min_confidence": NaN}}', "invalid_json"),
    "Infinity": (b'{"prompt": "x", "policy": {"min_confidence": Infinity}}', "invalid_json"),
    "a number beyond all": (b'{"prompt": "x", "policy": {"min_confidence": 1e999}}', "not_finite"),
    "a key twice": (b'{"prompt": "x", "prompt": "y"}', "invalid_json"),
    "a key twice, spelt otherwise": (b'{"prompt": "x", "p\\u0072ompt": "y"}', "invalid_json"),
    "a key twice, deep inside": (b'{"inputs": [{"prompt": "x"}, {"prompt": "{\\":", "prompt": ""}]}', "invalid_json"),
    "no UTF-8": (b'{"prompt": "\xff"}', "invalid_json"),
    "UTF-16": ('{"prompt": "x"}'.encode("utf-16"), "invalid_json"),
    "half a character": (b'{"prompt": "\\ud800"}', "invalid_json"),
    "a deep hole": (b"[" * 50_000, "invalid_json"),
    "a huge integer": (b'{"prompt": "x", "seed": ' + b"9" * 5000 + b"}", "invalid_json"),
}


@pytest.mark.parametrize("name", BAD_JSON)
async def test_bad_json_is_refused(server: Running, name: str) -> None:
    content, code = BAD_JSON[name]
    response = await server.client.post("/v1/predict", content=content, headers={"content-type": "application/json"})
    assert (response.status_code, response.json()["error"]["code"]) == (422, code)


async def test_a_question_twice_is_refused_and_not_lost(server: Running) -> None:
    body = b'{"model": "m", "state": "x", "questions": {"a": {"type": "noul"}, "a": {"type": "noul"}}}'
    response = await server.client.post("/v1/systemone", content=body, headers={"content-type": "application/json"})
    assert response.status_code == 422
    assert "a key twice" in response.json()["error"]["message"]


@pytest.mark.parametrize("text", ['"a": "b"', "C:\\\\", ":::", "\\", '{"a": {"a": 1}}'])
async def test_colons_in_a_text_are_not_keys(server: Running, text: str) -> None:
    response = await server.client.post("/v1/predict", json={"prompt": text, "policy": {"min_confidence": 0}})
    assert response.status_code == 200


@pytest.mark.parametrize("media_type", ["text/plain", "application/x-www-form-urlencoded", "", None])
async def test_a_body_must_be_declared_as_json(server: Running, media_type: str | None) -> None:
    headers = {} if media_type is None else {"content-type": media_type}
    response = await server.client.post("/v1/predict", content=json.dumps(GOOD), headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (
        415,
        "unsupported_media_type",
    )


async def test_a_charset_beside_the_media_type_is_fine(server: Running) -> None:
    response = await server.client.post(
        "/v1/predict",
        content=json.dumps(GOOD),
        headers={"content-type": "Application/JSON; charset=utf-8"},
    )
    assert response.status_code == 200


@pytest.mark.parametrize(
    ("body", "headers", "message"),
    [
        (b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), {}, "byte order mark"),
        (gzip.compress(json.dumps(GOOD).encode(), mtime=0), {"content-encoding": "br"}, "content-encoding"),
        (gzip.compress(json.dumps(GOOD).encode(), mtime=0), {"content-encoding": "gzip, gzip"}, "content-encoding"),
    ],
)
async def test_what_is_encoded_otherwise_is_told_so(
    server: Running, body: bytes, headers: dict[str, str], message: str
) -> None:
    headers = {"content-type": "application/json", **headers}
    response = await server.client.post("/v1/predict", content=body, headers=headers)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert message in response.json()["error"]["message"]


async def test_a_body_that_is_encoded_as_itself_is_fine(server: Running) -> None:
    headers = {"content-type": "application/json", "content-encoding": "identity"}
    response = await server.client.post("/v1/predict", content=json.dumps(GOOD), headers=headers)
    assert response.status_code == 200


def test_a_string_that_never_ends_takes_no_longer_than_another() -> None:
    body = b'{"prompt": "' + rb"\"" * 500_000
    started = time.perf_counter()
    with pytest.raises(ValueError, match="EOF while parsing a string"):
        parse(body, 2**20)
    assert time.perf_counter() - started < 10  # 0.02 s; in quadratic time an hour


@pytest.mark.parametrize("text", ["[", r"\\", r"a\\\"[,{", r"\"", r"{,\\\\", r"\u005c\u0022[[["])
def test_what_stands_in_strings_is_no_value(text: str) -> None:
    many = b"[" + b",".join([b'"' + text.encode() + b'"'] * 1000) + b"]"
    assert len(parse(many + b" " * 70_000, 2**20)) == 1000
    with pytest.raises(TooLargeError):
        parse(b"[" + b",".join([b"0"] * 66_000) + b"]", 2**20)
