"""Writing of safetensors files, with the errors of a file."""

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

__all__ = ["write_tensors"]


def write_tensors(file: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write tensors as a safetensors file.

    Raises:
        OSError: if the file cannot be written, for example to a full disk.
    """
    try:
        save_file({**tensors}, file, metadata={"format": "pt"})
    except SafetensorError as exc:
        raise OSError(f"{file} cannot be written: {exc}") from exc
