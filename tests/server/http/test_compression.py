"""Compressed bodies: the same answers, the same limit, and a clear error for every bad one."""

import gzip
import json
import tracemalloc
import zlib
from typing import Any

import pytest

from blora.server.errors import TooLargeError, UnsupportedMediaTypeError
from blora.server.http.compression import decompress, zstd
from tests.server.fakes import FakeEngine, Running, running

BODY = json.dumps({"prompt": "p=0.7 charged twice"}).encode()
COMPRESS = {"gzip": gzip.compress, "zstd": zstd.compress}
JSON = {"content-type": "application/json"}


async def post(server: Running, body: bytes, encoding: str) -> Any:
    return await server.client.post("/v1/predict", content=body, headers={**JSON, "content-encoding": encoding})


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize("spelled", [str.lower, str.upper, " {} ".format])
async def test_a_compressed_body_is_read_as_a_plain_one(server: Running, encoding: str, spelled: Any) -> None:
    response = await post(server, COMPRESS[encoding](BODY), spelled(encoding))
    assert response.status_code == 200, response.text
    assert response.json()["confidence"] == pytest.approx(0.7)


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_the_limit_is_that_of_what_comes_out(engine: FakeEngine, encoding: str) -> None:
    async with running(engine, max_body_bytes=2000) as server:
        for n_bytes, status in ((2000, 200), (2001, 413), (1_000_000, 413)):
            padded = BODY + b" " * (n_bytes - len(BODY))
            response = await post(server, COMPRESS[encoding](padded), encoding)
            assert response.status_code == status, response.text
        assert response.json()["error"]["code"] == "body_too_large"
        assert "once it is decompressed" in response.json()["error"]["message"]


@pytest.mark.parametrize("encoding", COMPRESS)
def test_a_bomb_takes_no_more_memory_than_the_limit(encoding: str) -> None:
    bomb = COMPRESS[encoding](bytes(2**26))
    tracemalloc.start()
    with pytest.raises(TooLargeError):
        decompress(bomb, encoding, 2**20)
    assert tracemalloc.get_traced_memory()[1] < 2**23
    tracemalloc.stop()


def test_a_window_of_zstd_is_limited() -> None:
    wide = zstd.compress(bytes(2**25), options={zstd.CompressionParameter.window_log: 25})
    with pytest.raises(UnsupportedMediaTypeError):
        decompress(wide, "zstd", 2**26)


@pytest.mark.parametrize("encoding", COMPRESS)
@pytest.mark.parametrize(
    "spoil",
    [
        lambda body: body[:-1],
        lambda body: body[: len(body) // 2],
        lambda body: body[:3],
        lambda body: body + b"x",
        lambda body: body + body,
        lambda body: bytes([body[0] ^ 1]) + body[1:],
        lambda _: BODY,
        lambda _: zlib.compress(BODY),
    ],
)
async def test_a_spoilt_body_is_refused(server: Running, encoding: str, spoil: Any) -> None:
    response = await post(server, spoil(COMPRESS[encoding](BODY)), encoding)
    assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
    assert f"complete piece of {encoding} data" in response.json()["error"]["message"]


@pytest.mark.parametrize("encoding", COMPRESS)
async def test_the_contents_are_checked_as_usual(server: Running, encoding: str) -> None:
    for body, code in ((b"", "missing"), (b"{", "invalid_json"), (b'{"prompt": ""}', "empty_string")):
        response = await post(server, COMPRESS[encoding](body), encoding)
        assert (response.status_code, response.json()["error"]["code"]) == (422, code)


async def test_an_empty_body_needs_no_decompression(server: Running) -> None:
    assert (await server.client.get("/v1/models", headers={"content-encoding": "zstd"})).status_code == 200


async def test_two_headers_of_encoding_are_refused(server: Running) -> None:
    for encodings in (("gzip", "gzip"), ("gzip", "identity"), ("identity", "gzip")):
        headers = [("content-type", "application/json"), *(("content-encoding", encoding) for encoding in encodings)]
        response = await server.client.post("/v1/predict", content=gzip.compress(BODY), headers=headers)
        assert (response.status_code, response.json()["error"]["code"]) == (415, "unsupported_media_type")
