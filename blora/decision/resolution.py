"""How finely scores can be told apart: no finer than the batch that a question is computed in moves them.

What a score lacks to certainty, as 1 - confidence or an entropy, moves in proportion to itself while it is not tiny. Of
the demo's test tickets, asked alone and among others, bfloat16 moved 1 - confidence by up to 2 % of itself, the
predictive entropy by up to 1 %, the mutual information by up to 7 %; float32 moved each by less than 0.01 %. Below some
value there is nothing but rounding: a mutual information of 0.00005 nats says how the draws were rounded, not what they
think. So thresholds lie on a grid, from `least` on, whose neighbours are one `step` apart.
"""

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Resolution", "resolution_of"]

# So little beyond a point of the grid is that point.
SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Resolution:
    """The grid on which thresholds lie.

    Attributes:
        least: the smallest distance to certainty that a threshold may allow, as 1 - confidence, or in nats.
        step: of the grid, as a share of the value.
    """

    least: float
    step: float

    def loosen(self, uncertainty: Tensor) -> Tensor:
        """Return the next point of the grid that allows each uncertainty.

        >>> import torch
        >>> [round(point, 6) for point in Resolution(0.001, 0.1).loosen(torch.tensor([0.00005, 0.00105])).tolist()]
        [0.001, 0.0011]
        """
        ratio = math.log1p(self.step)
        points = ((uncertainty.double().clamp_min(self.least) / self.least).log() / ratio - SLACK).ceil()
        return self.least * (points * ratio).exp()


COARSE, FINE = Resolution(least=1e-3, step=0.1), Resolution(least=1e-4, step=1e-3)


def resolution_of(dtype: str) -> Resolution:
    """Return the grid for answers of a base model in this dtype, as in bfloat16."""
    return COARSE if dtype in ("bfloat16", "float16") else FINE
