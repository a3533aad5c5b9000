"""Familiarity: how far a question's hidden states are from the training rows', and the p-value of that distance.

The states x of a question are mean hidden states at several depths, side by side, standardised by the training rows.
Parts of the distance look for different things:

gaussian: another subject, language or form. -log p of one Gaussian of the states at the lower depths, whose covariance
    is low-rank plus a multiple of the identity: K leading directions are whitened, the rest is divided by its variance
    (Tipping and Bishop, 1999). g = |Q x|^2 by direction / variance + |x - Q^T Q x|^2 / residual variance.
direction: a question that resembles none of the labels. On the R axes that separate the labels best, scaled to unit
    variance within labels (linear discriminant analysis), the cosines between the question and the labels' means, and
    of these a soft maximum, log(sum(exp(k cosine))) / k, so that a question between several labels is familiar as well.
    The length, which is not compared, tells how typical a question is, and not which label it resembles.
choices: choices of another kind, for questions that bring their own. log g of a second Gaussian, of the states of a
    choice, in the mean over the question's choices, so that their number does not matter.

With gaussian and direction, the cosines are multiplied by the share of the length that lies in the axes, sqrt(|A x|^2 /
g). Each part is standardised by validation rows, so that a distance of 0 is typical and one of 3 is far. Larger is more
foreign.

Directions and axes are rounded to float16, in which they are stored. The p-value is conformal: for questions like the
reference's, which must not be training rows, it is at most u with probability at most u. That is exact for the rows of
a calibration, and approximate before one, because the validation rows also scale the parts.

References:
    Lee et al., 2018. arXiv:1807.03888
    Ren et al., 2021. arXiv:2106.09022
    Bates et al., 2023, "Testing for outliers with conformal p-values". arXiv:2104.08279
"""

import math
from dataclasses import dataclass, field, fields

import torch
from torch import Tensor
from torch.nn.functional import normalize

from blora.config import FamiliarityConfig
from blora.decision.guesses import SHARE
from blora.errors import ShapeError

__all__ = [
    "HALVES",
    "MOST_BYTES",
    "Familiarity",
    "familiarity_shapes",
    "p_value",
    "p_value_among",
    "stored_bytes",
]

# Tensors that are stored in float16.
HALVES = ("directions", "axes", "choice_directions")
# Limit for the tensors as they are stored.
MOST_BYTES = 4 * 2**20
TINY = 1e-12


def familiarity_shapes(config: FamiliarityConfig) -> dict[str, tuple[int, ...]]:
    """Return the shapes of the tensors of a familiarity by name."""
    of_choices = {
        "choice_center": (config.n_low,),
        "choice_scale": (config.n_low,),
        "choice_directions": (config.n_directions, config.n_low),
        "choice_variances": (config.n_directions,),
        "choice_residual": (1,),
    }
    return (of_choices if config.kind == "choices" else {}) | {
        "center": (config.n_states,),
        "scale": (config.n_states,),
        "directions": (config.n_directions, config.n_low),
        "variances": (config.n_directions,),
        "residual": (1,),
        "axes": (config.n_axes, config.n_states),
        "labels": (config.n_labels, config.n_axes),
        "middle": (2,),
        "spread": (2,),
        "reference": (config.n_reference,),
    }


def stored_bytes(config: FamiliarityConfig) -> int:
    """Return the size of a familiarity's tensors as they are stored, in bytes."""
    shapes = familiarity_shapes(config)
    return sum((2 if name in HALVES else 4) * math.prod(shape) for name, shape in shapes.items())


@dataclass(frozen=True, slots=True)
class Familiarity:
    """A distance from the training rows: F states, K directions, R axes, C labels.

    Attributes:
        config: the sizes.
        center: (F,) mean of the training rows' states.
        scale: (F,) their standard deviations.
        directions: (K, n_low) orthonormal rows Q, the leading principal directions.
        variances: (K,) variances along them.
        residual: (1,) mean variance along every other direction.
        axes: (R, F) A, the axes that separate the labels.
        labels: (C, R) the labels' means on the axes, of unit length.
        middle: (2,) means of two parts over validation rows: the Gaussian, and the direction or the choices.
        spread: (2,) their standard deviations.
        reference: (n,) distances of the validation rows, for p-values without a calibration.
        choice_center: (n_low,) mean of the states of the training rows' choices; empty, as all of the choices, for any
            other kind.
        choice_scale: (n_low,) their standard deviations.
        choice_directions: (K, n_low) as `directions`.
        choice_variances: (K,) as `variances`.
        choice_residual: (1,) as `residual`.
    """

    config: FamiliarityConfig
    center: Tensor
    scale: Tensor
    directions: Tensor
    variances: Tensor
    residual: Tensor
    axes: Tensor
    labels: Tensor
    middle: Tensor
    spread: Tensor
    reference: Tensor
    choice_center: Tensor = field(default_factory=lambda: torch.zeros(0))
    choice_scale: Tensor = field(default_factory=lambda: torch.zeros(0))
    choice_directions: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    choice_variances: Tensor = field(default_factory=lambda: torch.zeros(0))
    choice_residual: Tensor = field(default_factory=lambda: torch.zeros(0))

    @classmethod
    def of(cls, config: FamiliarityConfig, tensors: dict[str, Tensor]) -> "Familiarity":
        """Return the familiarity of stored tensors, with directions and axes converted to float32 once.

        Raises:
            ShapeError: if a name or a shape is not that of `familiarity_shapes`.
        """
        found = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        expected = familiarity_shapes(config)
        if found != expected:
            raise ShapeError(f"got tensors {found}, expected {expected}")
        return cls(config, **{name: tensor.float() for name, tensor in tensors.items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors by name, as they are stored."""
        found = {name: getattr(self, name) for name in familiarity_shapes(self.config)}
        return {name: tensor.half() if name in HALVES else tensor for name, tensor in found.items()}

    def to(self, device: torch.device) -> "Familiarity":
        """Return the familiarity on another device."""
        return Familiarity(self.config, *(getattr(self, field.name).to(device) for field in fields(self)[1:]))

    def distance(self, states: Tensor, choices: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return the distances (B,) float32 of questions; larger is more foreign.

        Args:
            states: (B, F) mean states of the prompts.
            choices: mean states (R, F) of the questions' own choices, and the question (R,) of each; without them, as
                where letters stand for the choices, these are taken to be typical.

        Raises:
            ShapeError: if the number of states is not F.
        """
        parts = self.parts(states, choices)
        return ((parts - self.middle) / self.spread)[:, self.used].sum(-1)

    def guesses(self, distances: Tensor) -> Tensor:
        """Return the share of guesses (B,) in the answers to questions at distances (B,)."""
        beyond = self.config.guesses_beyond
        return torch.zeros_like(distances) if beyond is None else SHARE * (distances.double() > beyond)

    @property
    def used(self) -> list[int]:
        """Columns of `parts` that the distance adds up."""
        return {"gaussian": [0], "direction": [1], "both": [0, 1], "choices": [0, 1]}[self.config.kind]

    def parts(self, states: Tensor, choices: tuple[Tensor, Tensor] | None = None) -> Tensor:
        """Return log g, and minus the soft maximum of the cosines or log g of the choices, (B, 2), not standardised."""
        x = (self._checked(states) - self.center) / self.scale
        low = x[:, : self.config.n_low]
        squared = _mahalanobis(low, self.directions, self.variances, self.residual)
        if self.config.kind == "gaussian":
            second = torch.zeros_like(squared)
        elif self.config.kind == "choices":
            second = self._of_choices(choices, len(x))
        else:
            on_axes = x @ self.axes.T  # (B, R)
            cosines = normalize(on_axes, dim=-1) @ self.labels.T  # (B, C)
            if self.config.kind == "both":
                cosines = cosines * (on_axes.square().sum(-1) / squared).sqrt()[:, None]
            k = self.config.sharpness
            second = -(cosines.amax(-1) if k is None else (k * cosines).logsumexp(-1) / k)
        return torch.stack([squared.log(), second], -1)

    def _of_choices(self, choices: tuple[Tensor, Tensor] | None, n_questions: int) -> Tensor:
        """Return the mean log g (B,) of each question's choices, a typical one if they are not known."""
        if choices is None:
            return self.middle[1].expand(n_questions)
        states, owner = choices
        low = (self._checked(states)[:, : self.config.n_low] - self.choice_center) / self.choice_scale
        found = _mahalanobis(low, self.choice_directions, self.choice_variances, self.choice_residual).log()
        return found.new_zeros(n_questions).index_add(0, owner, found) / owner.bincount(minlength=n_questions)

    def _checked(self, states: Tensor) -> Tensor:
        """Return states in float32, once their number is F."""
        if states.ndim != 2 or states.shape[-1] != self.config.n_states:
            raise ShapeError(f"got states {tuple(states.shape)}, expected (B, {self.config.n_states})")
        return states.float()


def _mahalanobis(low: Tensor, directions: Tensor, variances: Tensor, residual: Tensor) -> Tensor:
    """Return g (B,) of standardised states (B, n_low)."""
    along = low @ directions.T  # (B, K)
    beyond = low - along @ directions  # not |x|^2 - |z|^2, which would cancel in float32
    return ((along.square() / variances).sum(-1) + beyond.square().sum(-1) / residual).clamp_min(TINY)


def p_value(distances: Tensor, reference: Tensor) -> Tensor:
    """Return the conformal p-values (1 + number of reference distances at least as far) / (n + 1).

    Args:
        distances: (B,) distances of questions.
        reference: (n,) distances of rows that were not trained on, in any order.

    Returns:
        (B,) float64 in (0, 1].

    >>> p_value(torch.tensor([0.0, 5.0]), torch.tensor([1.0, 2.0, 3.0])).tolist()
    [1.0, 0.25]
    """
    return p_value_among(distances, reference.double().sort().values)


def p_value_among(distances: Tensor, ascending: Tensor) -> Tensor:
    """Return what `p_value` returns, for reference distances (n,) float64 that are in order already."""
    nearer = torch.searchsorted(ascending, distances.double())
    return (1 + len(ascending) - nearer).double() / (len(ascending) + 1)
