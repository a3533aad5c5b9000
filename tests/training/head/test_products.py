"""Products of the states of prompts and choices in a pointer head's fit, against a dense regression on them."""

from dataclasses import replace

import pytest
import torch

from blora.config import HeadConfig, PromptConfig
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import Features, head_shapes
from blora.posterior.draws import NO_LORA
from blora.training.head.fit import Regression
from blora.training.rows.packed import LabelledRow
from tests.heads import row_after_row
from tests.training.head.test_fit import fit_pointer, pointer_task


def test_a_pointer_head_reads_a_choice_in_the_light_of_the_prompt() -> None:
    """The prompt tells which of two numbers of a choice counts."""
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)

    def task(n_rows: int, seed: int) -> tuple[Features, list[LabelledRow]]:
        features, rows = pointer_task(n_rows, seed)
        prompt = torch.randn(n_rows, 5, generator=torch.Generator().manual_seed(seed))
        score = torch.where(prompt[:, :1] > 0, features.states[..., 2], features.states[..., 3])
        absent = torch.arange(3) >= torch.tensor([[row.row.n_choices] for row in rows])
        labels = score.masked_fill(absent, -torch.inf).argmax(-1).tolist()
        rows = [replace(row, label=label) for row, label in zip(rows, labels, strict=True)]
        return replace(features, prompt=prompt), rows

    (train, rows), (validation, held_out) = task(1500, 1), task(300, 2)
    with_prompt = fit_pointer(config, (train, rows), (validation, held_out))
    without = fit_pointer(config, (replace(train, prompt=None), rows), (validation, held_out))
    assert with_prompt.head.config.n_products == (5, 5)
    assert without.head.config.n_products == (0, 0)
    assert with_prompt.trial.metrics.nll < 0.8 * without.trial.metrics.nll
    # The weights and the posterior are those of a regression on the products themselves.
    head = with_prompt.head
    labels = torch.tensor([row.label for row in rows])
    z, prompts = head.project(train.states).double(), head.project_prompt(train.prompt).double()  # type: ignore[arg-type]
    products = (prompts[:, None, :, None] * z[:, :, None, :]).flatten(2)
    inputs, counts = torch.cat([z, products], -1), head.scaled(train.counts).double()

    def nll(weight: torch.Tensor) -> torch.Tensor:
        logits = inputs @ weight + (counts @ head.count_weight.double())[..., 0]
        absent = torch.arange(3) >= torch.tensor([[row.row.n_choices] for row in rows])
        return -logits.masked_fill(absent, -1e9).log_softmax(-1).gather(1, labels[:, None]).sum()

    weight = head.weight[:, 0].double()
    hessian = torch.autograd.functional.hessian(nll, weight).diagonal()  # type: ignore[no-untyped-call]
    own, _, on_products = with_prompt.precisions
    flat = row_after_row(train, [row.row.n_choices for row in rows])
    unit = torch.from_numpy(Regression.of(config, flat, rows).z).square().mean().double()
    precision = torch.cat([torch.full((5,), own).double(), torch.full((25,), on_products) * unit])
    torch.testing.assert_close(head.deviation[:, 0].double(), (hessian + precision).rsqrt(), rtol=1e-3, atol=1e-5)
    gradient = torch.autograd.functional.jacobian(nll, weight) + precision * weight  # type: ignore[no-untyped-call]
    at_zero = torch.autograd.functional.jacobian(nll, 0 * weight).abs().max()  # type: ignore[no-untyped-call]
    assert gradient.abs().max() < 0.01 * at_zero
    packed = [row.row for row in rows]
    padded, unpadded = (head_log_probs(head.mean(NO_LORA), packed, features) for features in (train, flat))
    found = padded[0].gather(1, labels[:, None]).sum()
    assert -found.item() == pytest.approx(nll(weight).item(), rel=1e-4)
    torch.testing.assert_close(unpadded, padded, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n_rows", [1, 2, 30, 100])
@pytest.mark.parametrize("value", [0.0, 0.7, 134.2])
def test_equal_prompts_enter_no_products(n_rows: int, value: float) -> None:
    train, rows = pointer_task(n_rows, 1)
    train = replace(train, prompt=torch.full((n_rows, 5), value))
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)
    regression = Regression.of(config, row_after_row(train, [row.row.n_choices for row in rows]), rows)
    assert regression.blank.config.n_products == (0, 0)
    assert fit_pointer(config, (train, rows), (train, rows)).head.config.n_products == (0, 0)


def test_products_that_tell_nothing_are_left_out() -> None:
    (train, rows), (validation, held_out) = pointer_task(200, 1), pointer_task(200, 2)
    noise = [torch.randn(200, 5, generator=torch.Generator().manual_seed(seed)) for seed in (1, 2)]
    train, validation = replace(train, prompt=noise[0]), replace(validation, prompt=noise[1])
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)
    head = fit_pointer(config, (train, rows), (validation, held_out)).head
    assert head.config.n_products == (0, 0)
    assert head.tensors().keys() == head_shapes(head.config, PromptConfig(readout="pointer", choice_end="eos")).keys()
