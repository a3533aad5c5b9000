"""How far results may move for rounding alone, in the tests that decide whether and how a base model is read."""

from collections.abc import Iterable

import torch
from torch import Tensor

from blora.base_model import BaseModel
from blora.errors import BaseModelError

__all__ = ["MARGIN", "MAX_BOUND", "OTHER_SHAPE", "SAME_SHAPE", "Moved", "check_moved", "distance", "largest", "remedy"]

# Largest allowed changes beside the measured rounding, in standard deviations of what is compared: between products of
# one shape, and between products of different shapes. Ignoring the mask or the positions changes logits by 0.4 to 1.
SAME_SHAPE = 1e-3
OTHER_SHAPE = {torch.float32: 1e-3, torch.bfloat16: 0.1, torch.float16: 0.05}
# Factor on the measured effect of rounding.
MARGIN = 3.0
# Bound above which a test could not tell an unsuitable architecture.
MAX_BOUND = 0.35

# A cause, the change that it makes, and the change that is allowed beside rounding.
Moved = tuple[str, float, float]


def check_moved(base: BaseModel, moved: Iterable[Moved], rounding: float, *, what: str, fault: str) -> None:
    """Check that no cause changes a model's results by more than rounding explains.

    Args:
        base: the base model.
        moved: the causes.
        rounding: the measured effect of rounding.
        what: name of the results.
        fault: what is wrong with an architecture in which a cause changes more.

    Raises:
        BaseModelError: naming the first cause that does, or if the measured rounding is too large to tell.
    """
    for cause, change, allowed in moved:
        bound = allowed + MARGIN * rounding
        if bound > MAX_BOUND:
            raise BaseModelError(
                f"got {base.ref.id}, whose {what} change by {rounding:.2g} of their standard deviation where only "
                "rounding may change them, expected less; its forward pass is random or depends on the batch and "
                "cannot be used"
            )
        if not change <= bound:  # NaN fails the test
            raise BaseModelError(
                f"got {base.ref.id}, in which {cause} changes the {what} by {change:.2g} of their standard "
                f"deviation, expected at most {bound:.2g}, which rounding explains; in this architecture {fault}, so "
                "that it cannot be used"
            )


def remedy(base: BaseModel) -> str:
    """Return what to use in place of a base model in its dtype."""
    return "another model" if base.dtype == torch.float32 else "--dtype float32"


def distance(found: Tensor, expected: Tensor) -> float:
    """Return the root mean square of the difference, in standard deviations of what is expected, which is centered."""
    return ((found - expected).square().mean() / expected.square().mean()).sqrt().item()


def largest(distances: list[float]) -> float:
    """Return the largest distance, or NaN if one is NaN, which Python's max may lose."""
    return torch.tensor(distances).max().item()
