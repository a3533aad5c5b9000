"""S draws of every adapted module's LoRA factors, and the context by which they reach the layers in a forward pass.

Factors that are equal under every draw are stored once.

Draws are arguments, not state: no module holds a current adapter. `use_draws` binds them to the running context
(a thread or an asyncio task), so concurrent forward passes cannot see each other's draws.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import MappingProxyType

import torch
from torch import Tensor

from blora.errors import ShapeError

__all__ = ["NO_LORA", "Draws", "Factors", "active_draws", "use_draws"]


@dataclass(frozen=True, slots=True)
class Factors:
    """The two LoRA factors of one module, each with one slice per draw or one slice for all draws.

    Joined draws of several adapters may have one slice per adapter instead: see `blora.posterior.joined`.

    Attributes:
        A: (S or 1, rank, d_in).
        B: (S or 1, d_out, rank).
    """

    A: Tensor
    B: Tensor

    @property
    def differ(self) -> bool:
        """Return whether the factors differ between draws."""
        return max(len(self.A), len(self.B)) > 1

    def part(self, start: int, stop: int) -> "Factors":
        """Return the factors of draws start to stop - 1, as views."""
        A, B = (factor if len(factor) == 1 else factor[start:stop] for factor in (self.A, self.B))
        return Factors(A, B)


@dataclass(frozen=True, slots=True, eq=False)
class Draws:
    """S immutable draws of a whole adapter.

    In a forward pass each draw applies to an equal share of the rows, draws outermost, unless `rows` is given.

    Attributes:
        factors: the factors of each adapted module, by the module's name in the base model.
        scaling: alpha / rank, applied to B @ A.
        n_samples: S.
        rows: (R,) the index of the draw of each row of the forward pass; None for equal shares.
    """

    factors: Mapping[str, Factors]
    scaling: float
    n_samples: int
    rows: Tensor | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "factors", MappingProxyType(dict(self.factors)))

    def first(self, n_samples: int) -> "Draws":
        """Return the first draws, as `part(0, n_samples)`."""
        return self.part(0, n_samples)

    def part(self, start: int, stop: int) -> "Draws":
        """Return draws start to stop - 1, as views.

        Raises:
            ShapeError: if the draws are bound to rows, whose indices count all draws.
        """
        if self.rows is not None:
            raise ShapeError(
                f"got a part of draws that are bound to {len(self.rows)} rows, expected draws for equal shares of the "
                "rows; take the part first, then call for_rows"
            )
        return Draws({name: f.part(start, stop) for name, f in self.factors.items()}, self.scaling, stop - start)

    def for_rows(self, rows: Tensor) -> "Draws":
        """Return the same draws for a forward pass of R rows, given the index of each row's draw, (R,)."""
        return Draws(self.factors, self.scaling, self.n_samples, rows)

    def to(self, device: torch.device) -> "Draws":
        """Return the same draws for the same rows on another device."""
        moved = {name: Factors(f.A.to(device), f.B.to(device)) for name, f in self.factors.items()}
        return Draws(moved, self.scaling, self.n_samples, self.rows.to(device) if self.rows is not None else None)


# One draw of the frozen base model alone.
NO_LORA = Draws({}, scaling=1.0, n_samples=1)
_ACTIVE: ContextVar[Draws | None] = ContextVar("blora_draws", default=None)


def active_draws() -> Draws | None:
    """Return the draws bound to the running context, or None for the plain base model."""
    return _ACTIVE.get()


@contextmanager
def use_draws(draws: Draws | None) -> Iterator[None]:
    """Bind draws for the forward passes inside the block."""
    token = _ACTIVE.set(draws)
    try:
        yield
    finally:
        _ACTIVE.reset(token)
