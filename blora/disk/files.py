"""Reading of untrusted files: only regular files are opened, and every read has a size limit.

Tensors are copied out of the file rather than memory-mapped: if the file is truncated meanwhile, the copy fails with an
exception, whereas a mapping would crash the process with a bus error. The header gives the names, shapes and dtypes
before any tensor is created.
"""

import errno
import hashlib
import math
import os
import stat
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from pydantic_core import from_json
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from blora.errors import AdapterError

__all__ = [
    "MOST_JSON_BYTES",
    "MOST_JSON_DEPTH",
    "TensorInfo",
    "TensorsFile",
    "UnreadableError",
    "file_digest",
    "is_present",
    "may_pass",
    "read_json",
]

# Limit for a config; the largest known ones have some ten kilobytes.
MOST_JSON_BYTES = 4 * 2**20
# Limit for nested lists and objects; an adapter's files have at most eight levels.
MOST_JSON_DEPTH = 32
# Limit for the header of a safetensors file, enough for 60,000 tensors.
MOST_HEADER_BYTES = 8 * 2**20
MOST_DIMENSIONS = 4

_LENGTH_BYTES = 8  # size of the field that holds the header's length
_ITEM_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "BOOL": 1}
# Errors of a path at which there is no file.
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG})


class UnreadableError(AdapterError):
    """A file that exists and cannot be read at the moment, as after an I/O error or for lack of permission."""


def may_pass(error: OSError) -> bool:
    """Return whether an error of a path may pass although the path stays as it is: every error but a missing file's."""
    return error.errno not in _ABSENT


def is_present(file: Path) -> bool:
    """Return whether there is anything at a path, a link that leads nowhere included.

    Raises:
        UnreadableError: if nobody can tell at the moment.
    """
    try:
        os.lstat(file)
    except OSError as exc:
        if may_pass(exc):
            raise _unreadable(file, exc) from exc
        return False
    return True


@contextmanager
def _opened(file: Path, advice: str) -> Iterator[BufferedReader]:
    """Open a regular file; anything else, such as a pipe, a device or a folder, is refused before it is opened.

    Raises:
        UnreadableError: if the file exists and cannot be opened or read.
        AdapterError: if the file is missing or not regular.
    """
    try:
        _check_regular(os.stat(file), file, advice)
        # O_NONBLOCK: should a pipe replace the file after the check, opening it must not wait for a writer.
        descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as opened:
            _check_regular(os.fstat(descriptor), file, advice)
            yield opened
    except OSError as exc:
        if may_pass(exc):
            raise _unreadable(file, exc) from exc
        raise AdapterError(f"got {file}, which cannot be read ({exc.strerror}); {advice}") from exc


def _unreadable(file: Path, error: OSError) -> UnreadableError:
    return UnreadableError(
        f"got {file}, which cannot be read ({error.strerror}), expected a file that this process may read: check its "
        "permissions and its file system, and load it again"
    )


def _check_regular(found: os.stat_result, file: Path, advice: str) -> None:
    if not stat.S_ISREG(found.st_mode):
        raise AdapterError(f"got {file}, which cannot be read (not a regular file); {advice}")


def _read(file: Path, most: int, advice: str) -> bytes:
    with _opened(file, advice) as opened:
        content = opened.read(most + 1)
    if len(content) > most:
        raise AdapterError(f"got {file} of more than {most} bytes, expected at most that many; {advice}")
    return content


def read_json(file: Path, *, most_bytes: int = MOST_JSON_BYTES, advice: str) -> Any:
    """Return the parsed contents of a JSON file.

    Args:
        file: a regular file.
        most_bytes: largest allowed size.
        advice: advice for the error message, for a file that cannot be used.

    Raises:
        AdapterError: if the file cannot be read, is too large, is not JSON, or has more than MOST_JSON_DEPTH levels.
    """
    content = _read(file, most_bytes, advice)
    try:
        found = from_json(content)
    except ValueError as exc:
        raise AdapterError(f"got {file}, which is not JSON ({exc}); {advice}") from exc
    level = [found]
    for _ in range(MOST_JSON_DEPTH):
        level = [inner for value in level for inner in _inside(value)]
        if not level:
            return found
    raise AdapterError(
        f"got {file} with more than {MOST_JSON_DEPTH} levels of lists and objects, expected at most that many; {advice}"
    )


def _inside(value: Any) -> Iterable[Any]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()


def file_digest(file: Path, *, advice: str) -> str:
    """Return the SHA-256 of a regular file in hexadecimal digits, without loading the whole file into memory.

    Raises:
        AdapterError: if the file cannot be read.
    """
    with _opened(file, advice) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """Shape and dtype of a tensor, from the header of a safetensors file.

    Attributes:
        shape: size of each dimension.
        dtype: name of the dtype in safetensors headers, such as F32.
    """

    shape: tuple[int, ...]
    dtype: str


class TensorsFile:
    """A safetensors file that is read in two steps: the header first, the tensors after the caller has checked it.

    Args:
        file: a regular file.
        advice: advice for error messages, for a file that cannot be used.

    Raises:
        AdapterError: if the file cannot be read, is not a safetensors file, or has a tensor of an unsupported dtype.
    """

    def __init__(self, file: Path, *, advice: str) -> None:
        self.file = file
        self._advice = advice
        with _opened(file, advice) as opened:
            self._size = os.fstat(opened.fileno()).st_size
            length = int.from_bytes(opened.read(_LENGTH_BYTES), "little")
            if self._size < _LENGTH_BYTES or length > min(MOST_HEADER_BYTES, self._size - _LENGTH_BYTES):
                raise self._wrong(f"a header of {length} bytes in a file of {self._size}")
            header = opened.read(length)
        self.tensors = dict(self._infos(header))

    def _infos(self, header: bytes) -> Iterator[tuple[str, TensorInfo]]:
        try:
            entries = from_json(header)
        except ValueError as exc:
            raise self._wrong(str(exc)) from exc
        if not isinstance(entries, dict):
            raise self._wrong("a header that is no object")
        for name, entry in entries.items():
            if name == "__metadata__":
                continue
            shape, dtype = (entry.get(key) if isinstance(entry, dict) else None for key in ("shape", "dtype"))
            if not isinstance(shape, list) or not all(type(size) is int and size >= 0 for size in shape):
                raise self._wrong(f"tensor {name} without a shape")
            if not isinstance(dtype, str) or dtype not in _ITEM_BYTES:
                raise self._wrong(f"tensor {name} of dtype {dtype}, expected one of {', '.join(_ITEM_BYTES)}")
            if len(shape) > MOST_DIMENSIONS or math.prod(shape) * _ITEM_BYTES[dtype] > self._size:
                raise self._wrong(f"tensor {name} with more numbers or dimensions than fit into {self._size} bytes")
            yield name, TensorInfo(tuple(shape), dtype)

    def read(self) -> dict[str, Tensor]:
        """Return the tensors by name, copied into memory.

        Raises:
            AdapterError: if the file has changed since the header was read, or is inconsistent.
        """
        with _opened(self.file, self._advice) as opened:
            content = opened.read(self._size + 1)
        try:
            found = load(content)
        except (SafetensorError, ValueError, KeyError, RuntimeError) as exc:
            raise self._wrong(str(exc)) from exc
        if {name: tuple(tensor.shape) for name, tensor in found.items()} != {
            name: info.shape for name, info in self.tensors.items()
        }:
            raise self._wrong("it changed while it was read")
        return found

    def _wrong(self, why: str) -> AdapterError:
        return AdapterError(f"got {self.file}, which is not a safetensors file ({why}); {self._advice}")
