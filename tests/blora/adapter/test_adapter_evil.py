"""Adapter folders made to harm: each is refused soon, with its reason, and takes no more memory than its files."""

import os
from pathlib import Path

import pytest
import torch

from blora.adapter import load_adapter
from blora.adapter.calibration_file import read_calibrations
from blora.base_model import BaseModel
from blora.errors import AdapterError
from tests.blora.adapter.evil import CALIBRATION, EVIL
from tests.blora.adapters import rewrite_tensors, saved
from tests.memory import peak_memory

# All evil folders here have files of less than 20 MiB.
MOST_MIB = 300


def loaded_with_calibration(folder: Path, base: BaseModel) -> None:
    load_adapter(folder, base)
    read_calibrations(folder)


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_folder_is_refused_and_takes_little_memory(folder: Path, llama: BaseModel, name: str) -> None:
    spoil, message = EVIL[name]
    spoil(folder)
    with peak_memory() as peak, pytest.raises(AdapterError, match=message):
        loaded_with_calibration(folder, llama)
    assert peak.mib < MOST_MIB


def test_integers_in_the_place_of_numbers_are_refused(folder: Path, llama: BaseModel) -> None:
    def as_integers(tensors: dict[str, torch.Tensor]) -> None:
        first = sorted(tensors)[0]
        tensors[first] = tensors[first].to(torch.int64)

    rewrite_tensors(as_integers)(folder / "posterior.safetensors")
    with pytest.raises(AdapterError, match=r"of torch\.int64 in posterior\.safetensors, expected torch\.float32"):
        load_adapter(folder, llama)


def test_more_memory_than_allowed_is_refused_and_the_setting_named(folder: Path, llama: BaseModel) -> None:
    load_adapter(folder, llama, max_memory_bytes=2**24)
    with pytest.raises(AdapterError, match="3 draws take .* MiB of memory, expected at most 0; .*max-adapter-memory"):
        load_adapter(folder, llama, max_memory_bytes=1000)


def test_a_pipe_is_refused_even_where_somebody_writes_into_it(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / CALIBRATION)
    writer = os.open(tmp_path / CALIBRATION, os.O_RDWR)
    try:
        os.write(writer, b"{}")
        with pytest.raises(AdapterError, match="not a regular file"):
            read_calibrations(tmp_path)
    finally:
        os.close(writer)


def test_a_file_that_is_cut_off_while_it_is_read_is_an_error_and_no_signal(
    folder: Path, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    from blora.disk import files

    file = folder / "posterior.safetensors"
    real = files.TensorsFile.read

    def late(self: files.TensorsFile) -> dict[str, torch.Tensor]:
        os.truncate(file, file.stat().st_size // 2)
        return real(self)

    monkeypatch.setattr(files.TensorsFile, "read", late)
    with pytest.raises(AdapterError, match="which is not a safetensors file"):
        load_adapter(folder, llama)


def test_every_form_is_read_as_before(tmp_path: Path, llama: BaseModel) -> None:
    for form in ({"method": "lora"}, {"family": "flow"}, {"bayesian_layers": (1,)}):
        written = saved(tmp_path / "triage", llama, **form)
        loaded = load_adapter(tmp_path / "triage", llama).posterior
        for (name, one), (_, other) in zip(written.state_dict().items(), loaded.state_dict().items(), strict=True):
            assert torch.equal(one, other), name
