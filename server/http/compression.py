"""Decompression of request bodies, bounded by the size of the result."""

import sys
import zlib
from typing import Protocol

from blora.server.errors import ServerError, TooLargeError, UnsupportedMediaTypeError

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

__all__ = ["ENCODINGS", "decompress"]

ENCODINGS = ("gzip", "zstd")
# Log of the largest window of zstd, 8 MiB as RFC 8878 recommends; a few bytes of input make a decompressor allocate it.
_WINDOW_LOG = 23
# Format of gzip, with its header and checksum, for zlib.
_GZIP = 16 + zlib.MAX_WBITS


class _Decompressor(Protocol):
    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int) -> bytes: ...


def decompress(body: bytes, encoding: str, max_bytes: int) -> bytes:
    """Return a decompressed body.

    Args:
        body: one gzip member or one zstd frame.
        encoding: gzip or zstd.
        max_bytes: most bytes of the result; no more than one further byte is decompressed.

    Raises:
        TooLargeError: if the result is longer.
        UnsupportedMediaTypeError: if the body is not what its encoding says, or ends early.
    """
    try:
        decompressor = _decompressor(encoding)
        result = decompressor.decompress(body, max_bytes + 1)
        while not decompressor.eof and len(result) <= max_bytes:
            # Whatever the decompressor still holds; the input is complete.
            more = decompressor.decompress(b"", max_bytes + 1 - len(result))
            if not more and not decompressor.eof:
                raise _unreadable(encoding)
            result += more
    except (zlib.error, zstd.ZstdError, EOFError) as exc:
        raise _unreadable(encoding) from exc
    if len(result) > max_bytes:
        raise TooLargeError(
            f"The body is longer than {max_bytes} bytes once it is decompressed, which is the limit: shorten it or "
            "send fewer inputs.",
            code="body_too_large",
        )
    if decompressor.unused_data:
        raise _unreadable(encoding)
    return result


def _decompressor(encoding: str) -> _Decompressor:
    if encoding == "gzip":
        return _Gzip()
    return zstd.ZstdDecompressor(options={zstd.DecompressionParameter.window_log_max: _WINDOW_LOG})


class _Gzip:
    """A decompressor of gzip that keeps its unread input, as those of zstd do."""

    def __init__(self) -> None:
        self._zlib = zlib.decompressobj(_GZIP)

    @property
    def eof(self) -> bool:
        return self._zlib.eof

    @property
    def unused_data(self) -> bytes:
        return self._zlib.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._zlib.decompress(self._zlib.unconsumed_tail + data, max_length)


def _unreadable(encoding: str) -> ServerError:
    return UnsupportedMediaTypeError(
        f"The body is not one complete piece of {encoding} data, as its content-encoding says: compress it again, or "
        "send it without a content-encoding."
    )
