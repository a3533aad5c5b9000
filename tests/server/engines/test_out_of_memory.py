"""A device with too little memory."""

from typing import Any

import pytest
import torch

from blora.inference.branches import Branches
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
