"""A device with too little memory, and one that is lost."""

from pathlib import Path
from typing import Any

import pytest
import torch

from blora.inference.branches import Branches
from blora.server.engines import torch_engine
from blora.server.engines.protocol import EngineUnavailableError
from tests.server.engines.asking import Asking


async def test_a_batch_that_the_device_has_no_memory_for_goes_in_halves(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [await asking.job("x" * i) for i in range(1, 8)]
    expected = await asking.run(jobs)
    real, sizes = Branches.score, list[int]()

    def small(self: Branches, picked: Any, *args: Any, **options: Any) -> torch.Tensor:
        sizes.append(len(picked))
        if len(picked) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, picked, *args, **options)

    monkeypatch.setattr(Branches, "score", small)
    for probs, alone in zip(await asking.run(jobs), expected, strict=True):
        assert torch.allclose(probs, alone, atol=1e-5)
    assert sizes == [7, 3, 1, 2, 4, 2, 2]
    assert "too little memory for 7 inputs" in caplog.text


async def test_an_input_that_never_fits_is_tried_no_more_than_it_takes_to_know(
    asking: Asking, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[None] = []

    def never(*args: Any, **options: Any) -> torch.Tensor:
        tries.append(None)
        raise torch.OutOfMemoryError("CUDA out of memory")

    jobs = [await asking.job("the same long beginning of every prompt here, and then " + text) for text in "ab"]
    await asking.run(jobs)  # the beginning is remembered
    monkeypatch.setattr(Branches, "score", never)
    for n_tries in (2, 1):  # with what is remembered, and then with that memory given back
        tries.clear()
        with pytest.raises(torch.OutOfMemoryError):
            await asking.run(jobs[:1])
        assert len(tries) == n_tries


async def test_an_adapter_is_loaded_with_the_memory_of_what_is_remembered(
    asking: Asking, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, prefixes = Branches.score, asking.engine._loaded_prefixes()

    def full(self: Branches, *args: Any, **options: Any) -> torch.Tensor:
        if prefixes._kept:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return real(self, *args, **options)

    await asking.run([await asking.job("the same long beginning of every prompt here, and " + text) for text in "ab"])
    assert prefixes._kept
    monkeypatch.setattr(Branches, "score", full)
    handle = await asking.engine.load_adapter(folder / "two", "again")
    assert handle.digest == asking.two.digest


@pytest.mark.parametrize("where", ["server.engines.torch_engine.read_adapter", "inference.branches.Branches.score"])
async def test_an_adapter_that_finds_no_memory_is_refused_and_what_is_remembered_given_back(
    asking: Asking, folder: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    def never(*args: Any, **options: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    await asking.run([await asking.job("the same long beginning of every prompt here, and " + text) for text in "ab"])
    monkeypatch.setattr(f"blora.{where}", never)
    with pytest.raises(EngineUnavailableError, match="'again', for which the device has too little memory"):
        await asking.engine.load_adapter(folder / "two", "again")
    assert not asking.engine._loaded_prefixes()._kept


@pytest.mark.parametrize("for_good", [True, False])
async def test_a_device_counts_as_lost_once_it_computes_nothing_any_more(
    asking: Asking, monkeypatch: pytest.MonkeyPatch, for_good: bool
) -> None:
    def fail(*args: Any, **options: Any) -> torch.Tensor:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered\nSearch for it in the documentation.")

    with monkeypatch.context() as failing:
        failing.setattr(Branches, "score", fail)
        if for_good:
            failing.setattr(torch_engine, "_touch", fail)
        with pytest.raises(torch.AcceleratorError):
            await asking.probabilities("x")
    assert asking.engine.lost == ("CUDA error: device-side assert triggered" if for_good else None)
    assert len(await asking.probabilities("x")) == 4
