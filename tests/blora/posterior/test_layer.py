import pytest
import torch
from torch import Tensor, nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.pytorch_utils import Conv1D

from blora.errors import ShapeError
from blora.posterior.draws import use_draws
from blora.posterior.layer import LoraLinear, linear_shape
from tests.scenarios import random_draws

D_OUT, D_IN, NAME = 6, 5, "layers.0.q_proj"


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def linear() -> nn.Linear:
    module = nn.Linear(D_IN, D_OUT)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator()))
    return module


def conv1d() -> nn.Module:
    """GPT-2's layer, with the weights of `linear` transposed."""
    module, source = Conv1D(D_OUT, D_IN), linear()
    with torch.no_grad():
        module.weight.copy_(source.weight.mT)
        module.bias.copy_(source.bias)
    return module


BASES = {"linear": linear, "conv1d": conv1d}


def test_linear_shape_is_d_out_and_d_in_for_every_kind_of_linear_module() -> None:
    assert linear_shape(linear()) == (D_OUT, D_IN)
    assert linear_shape(FalconLinear(D_IN, D_OUT)) == (D_OUT, D_IN)
    assert linear_shape(conv1d()) == (D_OUT, D_IN)


class Router(nn.Linear):
    """A linear layer that returns a tuple, as the routers of Llama 4 and Phi-3.5-MoE do."""

    def forward(self, input: Tensor) -> tuple[Tensor, Tensor]:  # type: ignore[override]
        logits = super().forward(input)
        return logits.softmax(-1), logits


@pytest.mark.parametrize("module", [nn.Embedding(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Conv1d(3, 4, 1), Router(3, 4)])
def test_no_other_module_is_linear(module: nn.Module) -> None:
    assert linear_shape(module) is None


@pytest.mark.parametrize("kind", BASES)
def test_without_active_draws_it_is_the_base_layer_bit_for_bit(kind: str) -> None:
    base = BASES[kind]()
    x = torch.randn(4, 3, D_IN, generator=generator(1))
    layer = LoraLinear(base, NAME)
    assert torch.equal(layer(x), base(x))
    with use_draws(random_draws({"another.module": (D_OUT, D_IN)}, 2)):
        assert torch.equal(layer(x), base(x))


def test_flattened_rows_are_each_under_the_draw_of_their_row() -> None:
    draws = random_draws({NAME: (D_OUT, D_IN)}, 3).for_rows(torch.tensor([2, 0, 2, 1]))
    layer, x = LoraLinear(linear(), NAME), torch.randn(4, 7, D_IN, generator=generator(1))
    with use_draws(draws):
        assert torch.equal(layer(x.flatten(0, 1)), layer(x).flatten(0, 1))
        with pytest.raises(ShapeError, match="got 27 rows, expected a multiple of the 4 whose draws are given"):
            layer(x.flatten(0, 1)[1:])
        with pytest.raises(ShapeError, match="got 8 rows, expected a multiple of the 4 whose draws are given"):
            layer(torch.cat([x, x]))


@pytest.mark.parametrize("kind", BASES)
@pytest.mark.parametrize("shape", [(6, D_IN), (6, 7, D_IN), (6, 2, 7, D_IN)])
def test_each_draw_is_applied_to_its_own_consecutive_rows(shape: tuple[int, ...], kind: str) -> None:
    draws = random_draws({NAME: (D_OUT, D_IN)}, 3, scaling=1.7)
    base = BASES[kind]()
    x = torch.randn(shape, generator=generator(1))
    with use_draws(draws):
        got = LoraLinear(base, NAME)(x)
    factors = draws.factors[NAME]
    for s in range(3):
        rows = slice(2 * s, 2 * s + 2)
        expected = base(x[rows]) + x[rows] @ (1.7 * factors.B[s] @ factors.A[s]).mT
        torch.testing.assert_close(got[rows], expected, rtol=0, atol=1e-5)


def test_rows_that_the_draws_do_not_divide_are_refused() -> None:
    with (
        use_draws(random_draws({NAME: (D_OUT, D_IN)}, 3)),
        pytest.raises(ShapeError, match=r"got 4 rows.*multiple of 3 draws"),
    ):
        LoraLinear(linear(), NAME)(torch.zeros(4, 2, D_IN))


def test_the_update_is_computed_in_the_factors_dtype_and_added_in_the_bases() -> None:
    base = linear().to(torch.bfloat16)
    x = torch.randn(2, 3, D_IN, generator=generator(1)).to(torch.bfloat16)
    draws = random_draws({NAME: (D_OUT, D_IN)}, 2)
    with use_draws(draws):
        got = LoraLinear(base, NAME)(x)
    assert got.dtype == torch.bfloat16
    factors = draws.factors[NAME]
    exact = torch.einsum("soR,sRi,sti->sto", factors.B, factors.A, x.float()) * draws.scaling
    torch.testing.assert_close(got, base(x) + exact.to(torch.bfloat16), rtol=0, atol=0.07)


def test_gradients_reach_the_factors_and_the_input_but_no_state_is_kept() -> None:
    draws = random_draws({NAME: (D_OUT, D_IN)}, 2)
    factors = draws.factors[NAME]
    factors.A.requires_grad_()
    factors.B.requires_grad_()
    x = torch.randn(2, 3, D_IN, generator=generator(1), requires_grad=True)
    layer = LoraLinear(linear().requires_grad_(False), NAME)
    with use_draws(draws):
        layer(x).square().sum().backward()
    for tensor in (factors.A, factors.B, x):
        assert tensor.grad is not None
        assert tensor.grad.abs().sum() > 0
    assert list(layer.state_dict()) == ["base.weight", "base.bias"]


def test_a_model_may_read_the_dtype_of_its_weight_but_not_compute_with_it() -> None:
    layer = LoraLinear(linear().to(torch.bfloat16), NAME)
    assert layer.weight.dtype == torch.bfloat16
    with pytest.raises(RuntimeError):  # such a product would lack the update
        nn.functional.linear(torch.zeros(2, D_IN, dtype=torch.bfloat16), layer.weight)
