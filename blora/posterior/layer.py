"""A linear layer that adds the low-rank update of the active draws, each row of the batch under its own draw."""

import torch
from torch import Tensor, nn

from blora.errors import ShapeError
from blora.posterior.draws import active_draws

__all__ = ["LoraLinear", "linear_shape"]

# The subclass of torch's linear layer that computes the same by another forward pass.
_SAME_PRODUCT = "FalconLinear"


def linear_shape(module: nn.Module) -> tuple[int, int] | None:
    """Return (d_out, d_in) of a linear module, torch's, Falcon's or GPT-2's transposed one, and None for any other.

    Other subclasses of torch's with a forward pass of their own are not linear: some routers return tuples.
    """
    if isinstance(module, nn.Linear):
        kind = type(module)
        plain = kind.forward is nn.Linear.forward or kind.__name__ == _SAME_PRODUCT
        return (module.out_features, module.in_features) if plain else None
    weight = getattr(module, "weight", None)
    if type(module).__name__ == "Conv1D" and isinstance(weight, Tensor):
        return weight.shape[1], weight.shape[0]
    return None


class LoraLinear(nn.Module):
    """A frozen linear layer plus alpha / rank * B_s A_s x for the active draws that adapt it.

    Without active draws it computes the base layer. It owns no factors: they come with the forward pass.

    Args:
        base: the layer it wraps.
        name: the wrapped layer's name in the base model, the key into `Draws.factors`.
    """

    def __init__(self, base: nn.Module, name: str) -> None:
        super().__init__()
        self.base = base
        self.name = name

    @property
    def weight(self) -> Tensor:
        """An empty tensor of the base layer's dtype and device, which some models read; its values lack the update."""
        return self.base.get_parameter("weight").new_empty(0)

    def forward(self, x: Tensor) -> Tensor:
        """Map rows (R, ..., d_in) to (R, ..., d_out), each under its draw; R counts tokens if the rows are flattened.

        Raises:
            ShapeError: if the rows cannot be divided among the draws.
        """
        out: Tensor = self.base(x)
        draws = active_draws()
        factors = draws.factors.get(self.name) if draws is not None else None
        if draws is None or factors is None:
            return out
        wanted = draws.n_samples if draws.rows is None else len(draws.rows)
        exact = draws.rows is not None and x.ndim > 2  # a matrix may be rows that are flattened to tokens
        if x.shape[0] != wanted if exact else x.shape[0] % wanted:
            raise ShapeError(
                f"got {x.shape[0]} rows, expected "
                + (
                    f"a multiple of {draws.n_samples} draws; repeat the rows for each draw"
                    if draws.rows is None
                    else f"a multiple of the {len(draws.rows)} whose draws are given"
                )
            )
        n_slices = max(len(factors.A), len(factors.B))
        A, B = (factor.expand(n_slices, -1, -1) for factor in (factors.A, factors.B))
        if factors.differ and draws.rows is not None:
            slices = draws.rows // (draws.n_samples // n_slices)  # of joined draws, several may share a slice
            A, B = A[slices], B[slices]
        rows = x.reshape(len(A), -1, x.shape[-1]).to(A.dtype)  # (slices, tokens, d_in)
        delta = torch.bmm(torch.bmm(rows, A.mT), B.mT)  # (slices, tokens, d_out)
        return out + (draws.scaling * delta).to(out.dtype).view_as(out)
