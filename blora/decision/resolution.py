"""The grid for thresholds, as coarse as the change in a score when a question is computed in another batch.

The distance of a score to certainty, as 1 - confidence or an entropy, changes by a nearly constant share of itself
unless it is tiny. For the demo's test tickets, asked alone and among others, bfloat16 changed 1 - confidence by up to
2 % of itself, the predictive entropy by up to 1 %, and the mutual information by up to 7 %; float32 changed each by
less than 0.01 %. Very small values are rounding noise: a mutual information of 0.00005 nats reflects the rounding of
the draws, not their disagreement. Thresholds therefore lie on a geometric grid that starts at `least` and grows by
`step`.
"""

import math
from dataclasses import dataclass

from torch import Tensor

__all__ = ["Resolution", "resolution_of"]

# Tolerance in grid steps: a value this little beyond a grid point counts as that point.
SLACK = 1e-6


@dataclass(frozen=True, slots=True)
class Resolution:
    """A geometric grid for thresholds.

    Attributes:
        least: smallest grid point, a distance to certainty, as 1 - confidence, or in nats.
        step: relative distance between neighbouring grid points.
    """

    least: float
    step: float

    def loosen(self, uncertainty: Tensor) -> Tensor:
        """Return the smallest grid point at or above each uncertainty.

        >>> import torch
        >>> [round(point, 6) for point in Resolution(0.001, 0.1).loosen(torch.tensor([0.00005, 0.00105])).tolist()]
        [0.001, 0.0011]
        """
        ratio = math.log1p(self.step)
        points = ((uncertainty.double().clamp_min(self.least) / self.least).log() / ratio - SLACK).ceil()
        return self.least * (points * ratio).exp()


COARSE, FINE = Resolution(least=1e-3, step=0.1), Resolution(least=1e-4, step=1e-3)


def resolution_of(dtype: str) -> Resolution:
    """Return the grid for a base model's dtype, such as bfloat16; vLLM may compute in any."""
    return FINE if dtype == "float32" else COARSE
