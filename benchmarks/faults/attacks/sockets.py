"""Bytes that are no HTTP, HTTP that may be read in two ways, and connections that are not used as they are meant."""

import contextlib
import json
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

import httpx

from benchmarks.faults.attacks.target import MAX_CONNECTIONS, READ_TIMEOUT_S, Case, Target, statuses

__all__ = ["CASES"]

FAMILY = "sockets"
HOST = b"host: x\r\n"
LIVE = b"GET /livez HTTP/1.1\r\n" + HOST
POST = b"POST /v1/predict HTTP/1.1\r\n" + HOST + b"authorization: Bearer the key of a client\r\n"
JSON = POST + b"content-type: application/json\r\n"
AT_ONCE = MAX_CONNECTIONS - 50
LAST = b"connection: close\r\n"
BODY = b'{"prompt": "I was charged twice", "policy": {"min_confidence": 0}}'
CHUNKED = JSON + LAST + b"transfer-encoding: chunked\r\n\r\n"


def _case(name: str, *expected: str) -> Callable[[Callable[[Target], str]], Case]:
    return lambda attack: Case(FAMILY, name, expected, attack)


def _sent(name: str, data: bytes, *expected: str) -> Case:
    return Case(FAMILY, name, expected, lambda target: statuses(target.say(data)))


def _chunks(*pieces: bytes) -> bytes:
    return b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces)


NO_HTTP = [
    _sent("HTTP/0.9", b"GET /livez\r\n\r\n", "400 invalid_http"),
    _sent(
        "the preface of HTTP/2",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        "401 400 invalid_http",
        "400 invalid_http",
    ),
    _sent(
        "a TLS hello",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 500 + b"\r\n",
        "400 invalid_http",
        "closed",
    ),
    _sent("a megabyte of NUL", b"\0" * 2**20, "400 invalid_http", "closed"),
    _sent("a megabyte without a line break", b"GET /" + b"a" * 2**20, "400 invalid_http", "closed"),
    _sent(
        "10,000 headers",
        LIVE + LAST + b"".join(b"x-%d: 1\r\n" % k for k in range(10_000)) + b"\r\n",
        "200",
        "400 invalid_http",
        "closed",
    ),
    _sent(
        "a header of 64 KiB", LIVE + LAST + b"x: " + b"a" * 65_536 + b"\r\n\r\n", "200", "400 invalid_http", "closed"
    ),
    _sent("a header that goes on in the next line", LIVE + LAST + b"x: a\r\n b\r\n\r\n", "200", "400 invalid_http"),
    _sent(
        "a header that begins with white space",
        b"GET /livez HTTP/1.1\r\n x: a\r\n" + HOST + b"\r\n",
        "400 invalid_http",
    ),
    _sent("white space before a header's colon", LIVE + b"content-length : 5\r\n\r\n", "400 invalid_http"),
    _sent("NUL in a header", LIVE + b"x: a\0b\r\n\r\n", "400 invalid_http"),
    _sent("lines that end in a bare CR", LIVE.replace(b"\r\n", b"\r") + b"\r\r", "400 invalid_http", "closed"),
    _sent("no host", b"GET /livez HTTP/1.1\r\n\r\n", "400 invalid_http"),
    _sent("two hosts", LIVE + b"host: y\r\n\r\n", "400 invalid_http"),
    _sent("a negative length", JSON + b"content-length: -1\r\n\r\n", "400 invalid_http"),
    _sent("a length with a sign", JSON + b"content-length: +5\r\n\r\n12345", "400 invalid_http"),
    _sent("a length of 5,000 digits", JSON + b"content-length: " + b"9" * 5000 + b"\r\n\r\n", "400 invalid_http"),
    _sent(
        "a length beyond the limit, and no body",
        JSON + LAST + b"content-length: 99999999999\r\n\r\n",
        "413 body_too_large",
    ),
    _sent("two lengths", JSON + b"content-length: 5\r\ncontent-length: 6\r\n\r\n123456", "400 invalid_http"),
    _sent(
        "a length and chunks, and a request hidden in them",
        JSON + b"content-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n" + LIVE + b"\r\n",
        "400 invalid_http",
    ),
    _sent(
        "another transfer encoding than chunks",
        JSON + b"transfer-encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "400 invalid_http",
    ),
    _sent("chunks of chunks", JSON + b"transfer-encoding: chunked, chunked\r\n\r\n0\r\n\r\n", "400 invalid_http"),
]

PARTS = [
    _sent("chunks with extensions", CHUNKED + b"%x;x=%s\r\n%s\r\n0\r\n\r\n" % (len(BODY), b"y" * 1000, BODY), "200"),
    _sent(
        "an extension of 70 KB",
        CHUNKED + b"5;x=" + b"y" * 70_000 + b"\r\n12345\r\n0\r\n\r\n",
        "422 invalid_type",
        "400 invalid_http",
    ),
    _sent("trailers behind the chunks", CHUNKED + _chunks(BODY) + b"0\r\nauthorization: Bearer x\r\n\r\n", "200"),
    _sent("a chunk of a negative size", CHUNKED + b"-5\r\n12345\r\n0\r\n\r\n", "400 invalid_http"),
    _sent("a chunk of 2^64 bytes", CHUNKED + b"FFFFFFFFFFFFFFFF\r\n{", "408 slow_request", "400 invalid_http"),
    _sent("a chunk size of 1,000 digits", CHUNKED + b"1" * 1000 + b"\r\n{", "400 invalid_http"),
    _sent("a body in 200,000 chunks of a byte", CHUNKED + _chunks(*[b" "] * 200_000, BODY) + b"0\r\n\r\n", "200"),
    _sent(
        "a body that is promised, waited for and never sent",
        JSON + LAST + b"expect: 100-continue\r\ncontent-length: 50\r\n\r\n",
        "100 408 slow_request",
    ),
    _sent("a body that stops in the middle", JSON + LAST + b"content-length: 50\r\n\r\n{", "408 slow_request"),
    _sent(
        "a target in the absolute form",
        b"GET http://x/livez HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        "200",
        "401 unauthorized",
    ),
    _sent(
        "CONNECT to another server",
        b"CONNECT example.com:443 HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        "401 unauthorized",
        "400 invalid_http",
    ),
    _sent("TRACE", b"TRACE /livez HTTP/1.1\r\n" + HOST + LAST + b"\r\n", "405 method_not_allowed"),
    _sent(
        "a method of 10 KB",
        b"A" * 10_000 + b" /livez HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        "405 method_not_allowed",
        "400 invalid_http",
    ),
    _sent(
        "dots in the path, percent-encoded",
        b"GET /livez/%2e%2e/info HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        "401 unauthorized",
    ),
    _sent("NUL behind an open path", b"GET /livez%00 HTTP/1.1\r\n" + HOST + LAST + b"\r\n", "401 unauthorized"),
    _sent(
        "a query that looks like an open path",
        b"GET /info?/livez HTTP/1.1\r\n" + HOST + LAST + b"\r\n",
        "401 unauthorized",
    ),
    _sent("an upgrade to HTTP/2 in clear text", LIVE + b"connection: upgrade, close\r\nupgrade: h2c\r\n\r\n", "200"),
    _sent(
        "a request id that would split the response", LIVE + LAST + b"x-request-id: a%0d%0aset-cookie: x\r\n\r\n", "200"
    ),
]


def _answered(target: Target) -> str:
    """Whether others are answered; one who is told to try again in a second does so."""
    for _ in range(5):
        with contextlib.suppress(httpx.TransportError):
            status = httpx.get(f"{target.server.url}/livez", timeout=60).status_code
            if status != 503:
                return "others answered" if status == 200 else f"others answered {status}"
        time.sleep(1)
    return "others not answered"


@_case("1,000 requests at once in one connection", "1000 of 200")
def _pipelined(target: Target) -> str:
    heard = target.say((LIVE + b"\r\n") * 999 + LIVE + LAST + b"\r\n", patience_s=60)
    return f"{heard.count(b'HTTP/1.1 200')} of 200"


@_case("an answer of which the client closes its own half before", "200", "closed")
def _half_closed(target: Target) -> str:
    with target.connect() as stream:
        stream.sendall(LIVE + b"\r\n")
        stream.shutdown(socket.SHUT_WR)
        heard = b""
        with contextlib.suppress(OSError):
            while more := stream.recv(2**16):
                heard += more
    return statuses(heard)


@_case("more clients than there may be connections, each of 1,000 answers that it does not read", "others answered")
def _deaf(target: Target) -> str:
    deaf = []
    for _ in range(MAX_CONNECTIONS + 20):
        with contextlib.suppress(OSError):
            asking = target.connect(receive_buffer=4096)
            asking.setblocking(False)
            deaf.append(asking)
            asking.send(b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n" + (LIVE + b"\r\n") * 900)
    seen = _answered(target)
    for asking in deaf:
        asking.close()
    return seen


@_case("a batch with all its samples, of which nothing is read", "hung up on")
def _unread(target: Target) -> str:
    choices = [str(k) for k in range(64)]
    inputs = [{"prompt": str(k)} for k in range(8)]
    fields = {"inputs": inputs, "choices": choices, "n_samples": 8, "return_samples": True}
    body = json.dumps(fields | {"policy": {"min_confidence": 0}}).encode()
    request = JSON + b"content-length: %d\r\n\r\n" % len(body) + body
    before = target.handles
    with target.connect(receive_buffer=2048) as stream:
        stream.sendall(request + (b"GET /openapi.json HTTP/1.1\r\n" + HOST + b"\r\n") * 900)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(1)
            if target.handles <= before:
                return "hung up on"
    return "still there after a minute"


@_case("200 clients that leave in the middle of a body", "others answered")
def _aborted(target: Target) -> str:
    for _ in range(200):
        with target.connect() as stream:
            stream.sendall(JSON + b"content-length: 1000\r\n\r\n{")
    return _answered(target)


@_case("1,000 connections that are reset while they are answered", "others answered")
def _reset(target: Target) -> str:
    for _ in range(1000):
        stream = target.connect()
        stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        stream.sendall(LIVE + b"\r\n")
        stream.close()
    return _answered(target)


@_case("400 connections that say nothing", "others answered")
def _silent(target: Target) -> str:
    silent = [target.connect() for _ in range(2 * MAX_CONNECTIONS)]
    seen = _answered(target)
    for stream in silent:
        stream.close()
    return seen


@_case("a body of one byte a second", "408 slow_request")
def _drip(target: Target) -> str:
    with target.connect() as stream:
        stream.sendall(JSON + LAST + b"content-length: 100\r\n\r\n")
        with contextlib.suppress(OSError):
            for _ in range(2 * READ_TIMEOUT_S):
                stream.sendall(b" ")
                time.sleep(1)
        return statuses(stream.recv(2**16))


@_case("a key in two headers, of which the second is good", "401 unauthorized")
def _two_keys(target: Target) -> str:
    return statuses(
        target.say(
            b"GET /info HTTP/1.1\r\n"
            + HOST
            + LAST
            + b"authorization: Bearer x\r\nauthorization: Bearer the key of a client\r\n\r\n"
        )
    )


def _at_once(path: str) -> Case:
    """Send a thousand requests to open paths, with nearly the allowed number of connections."""
    request = b"GET %s HTTP/1.1\r\n" % path.encode() + HOST + LAST + b"\r\n"

    def attack(target: Target) -> str:
        with ThreadPoolExecutor(AT_ONCE) as pool:
            found = Counter(pool.map(lambda _: statuses(target.say(request, patience_s=60)), range(1000)))
        return ", ".join(f"{count} of {status}" for status, count in found.items())

    return Case(FAMILY, f"1,000 times {path}, {AT_ONCE} at a time", ("1000 of 200",), attack)


CASES: Sequence[Case] = [
    *NO_HTTP,
    *PARTS,
    *(_pipelined, _half_closed, _two_keys, _drip, _aborted, _reset, _silent, _deaf, _unread.slowly()),
    *(_at_once("/metrics"), _at_once("/openapi.json")),
]
