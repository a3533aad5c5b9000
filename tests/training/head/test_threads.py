"""A fit beside numpy's BLAS: torch computes with one thread meanwhile, and a flag of the BLAS warns nobody."""

from collections.abc import Callable, Iterator

import numpy as np
import pytest
import torch

from blora.errors import NumericalError
from blora.posterior.draws import NO_LORA
from blora.training.head.fit import Regression, fit_head
from blora.training.head.inputs import Floats, HeadInputs
from tests.training.head.test_fit import CONFIG, linear_task

STEP = torch.optim.LBFGS.step


@pytest.fixture
def threads() -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield 2
    torch.set_num_threads(before)


@pytest.mark.parametrize("fails", [False, True])
def test_a_fit_takes_one_thread_of_torch_and_gives_the_others_back(
    monkeypatch: pytest.MonkeyPatch, threads: int, fails: bool
) -> None:
    seen: set[int] = set()

    def step(optimizer: torch.optim.LBFGS, loss: Callable[[], float]) -> object:
        seen.add(torch.get_num_threads())
        if fails:
            raise MemoryError
        return STEP(optimizer, loss)

    monkeypatch.setattr("torch.optim.LBFGS.step", step)
    features, rows = linear_task(40, seed=0)
    regression = Regression.of(CONFIG, features, rows)
    if fails:
        with pytest.raises(MemoryError):
            fit_head(regression, features, rows, NO_LORA)
    else:
        fit_head(regression, features, rows, NO_LORA)
    assert seen == {1}
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("spoils", [False, True])
def test_a_product_that_is_flagged_as_invalid_warns_nobody_and_one_that_is_fails(
    monkeypatch: pytest.MonkeyPatch, spoils: bool
) -> None:
    """Warnings are errors in the tests, as in a project that turns them into errors."""
    logits = HeadInputs.logits

    def flagged(inputs: HeadInputs, weights: list[Floats]) -> Floats:
        invalid = np.array([np.inf], "f") - np.array([np.inf], "f")
        return logits(inputs, weights) + (invalid if spoils else 0)

    monkeypatch.setattr(HeadInputs, "logits", flagged)
    features, rows = linear_task(40, seed=0)
    regression = Regression.of(CONFIG, features, rows)
    if spoils:
        with pytest.raises((NumericalError, RuntimeError)):  # of blora or of the optimiser, whichever is first
            fit_head(regression, features, rows, NO_LORA)
    else:
        fit_head(regression, features, rows, NO_LORA)
