"""Products below float32 have few shapes, and the outputs that they had."""

import random

import pytest
import torch
from torch import nn

from blora.base_model.precision import pad_rows, set_precision
from blora.inference.branches import score_all
from tests.scenarios import random_rows, tiny_base


def test_rows_are_padded_to_few_numbers_by_an_eighth_at_most() -> None:
    found = {n: len(pad_rows(torch.zeros(n, 1, dtype=torch.bfloat16))) for n in range(1, 4097)}
    assert len(set(found.values())) < 64
    assert all(n <= padded <= max(n + 7, 1.125 * n) for n, padded in found.items())


def test_in_float32_rows_stay_as_they_are() -> None:
    rows = torch.zeros(5, 1)
    assert pad_rows(rows) is rows


def in_bfloat16(layer: nn.Linear) -> nn.Linear:
    model = tiny_base("llama").model
    model.model.layers[0].added = layer
    set_precision(model, torch.bfloat16)
    return layer


@pytest.mark.parametrize("shape", [(4, 8), (2, 3, 8), (1, 1, 8)])
def test_a_layer_gives_what_it_gave(shape: tuple[int, ...]) -> None:
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(0))
    layer = nn.Linear(8, 6)
    expected = nn.functional.linear(x.bfloat16(), layer.weight.bfloat16(), layer.bias.bfloat16()).float()
    found = in_bfloat16(layer)(x)
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=1e-2)


def test_gradients_pass_through_padded_products() -> None:
    layer = in_bfloat16(nn.Linear(8, 6))
    x = torch.ones(1, 5, 8, requires_grad=True)
    layer(x).sum().backward()
    assert x.grad is not None
    torch.testing.assert_close(x.grad, layer.weight.float().sum(0).expand_as(x), rtol=2e-2, atol=2e-2)


def test_batches_of_any_size_multiply_few_numbers_of_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base("llama", dtype=torch.bfloat16)
    seen: set[int] = set()
    real = nn.functional.linear

    def noting(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if x.dtype == torch.bfloat16:
            seen.add(x.numel() // x.shape[-1])
        return real(x, weight, bias)

    monkeypatch.setattr(nn.functional, "linear", noting)
    chance = random.Random(0)
    for k in range(60):
        score_all(base.model, random_rows(chance.randint(1, 9), seed=k), None, max_batch_tokens=512)
    assert 1 < len(seen) <= 40
    assert all(n % 8 == 0 for n in seen)
