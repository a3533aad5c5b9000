"""The settings of what reads hidden states: the decision head, and the familiarity beside it."""

from dataclasses import dataclass
from math import isfinite
from typing import ClassVar, Literal, get_args

from pydantic import ConfigDict

from blora.config.base_model import BaseModelRef
from blora.config.checks import require

__all__ = ["MOST_CHOICES", "MOST_REFERENCE", "CompanionConfig", "FamiliarityConfig", "FamiliarityKind", "HeadConfig"]

# Limit for a fixed label set.
MOST_CHOICES = 255
# Limits for what a head reads and stores.
MOST_DEPTHS, MOST_STATES, MOST_DIRECTIONS, MOST_GRAMS, MOST_PRODUCTS = 64, 2**20, 4096, 2**20, 2**16
# Limit for the reference distances of a familiarity.
MOST_REFERENCE = 4096
# Limit for the sharpness of a familiarity, beyond which a soft maximum is the maximum.
MOST_SHARPNESS = 1000

FamiliarityKind = Literal["gaussian", "direction", "both", "choices"]

_STRICT = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class CompanionConfig:
    """Settings of a companion: an encoder whose states a linear head reads beside those of the base model.

    Attributes:
        model: reference to the companion.
        depths: layers of the companion whose inputs are read, as `HeadConfig.depths`.
        n_states: number of values that are read at all of these depths together.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    model: BaseModelRef
    depths: tuple[int, ...]
    n_states: int

    def __post_init__(self) -> None:
        _check_depths(self.depths)
        require(1 <= self.n_states <= MOST_STATES, f"n_states = {self.n_states}", f"1 to {MOST_STATES}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadConfig:
    """Settings of a decision head, beside `PromptConfig.readout`, which names its kind.

    Attributes:
        depths: decoder layers whose inputs are read; the number of layers stands for the input of the output head.
        n_states: number of values that are read at all depths together, those of the companion included.
        n_directions: number of directions on which the standardised states are projected.
        n_grams: number of the n-grams of words and characters that have weights, for a linear head; before its fit, the
            most of them.
        n_products: (P, Q): a pointer head reads the products of P directions of the prompt's states and the first Q
            directions of a choice's; (0, 0) for no products.
        mirrored: whether draws come in pairs of opposite noise. New heads do; a head whose settings do not say so draws
            independently, as when its thresholds were proved.
        companion: settings of the companion; None without one.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    depths: tuple[int, ...]
    n_states: int
    n_directions: int
    n_grams: int = 0
    n_products: tuple[int, int] = (0, 0)
    mirrored: bool = False
    companion: CompanionConfig | None = None

    def __post_init__(self) -> None:
        _check_depths(self.depths)
        for name, least, most in (
            ("n_states", 1 + self.n_companion_states, MOST_STATES),
            ("n_directions", 1, MOST_DIRECTIONS),
            ("n_grams", 0, MOST_GRAMS),
        ):
            value = getattr(self, name)
            require(least <= value <= most, f"{name} = {value}", f"{least} to {most}")
        of_prompt, of_choice = self.n_products
        most = 0 if self.n_grams else MOST_PRODUCTS
        require(
            self.n_products == (0, 0)
            or (of_prompt > 0 and 0 < of_choice <= self.n_directions and of_prompt * of_choice <= most),
            f"n_products = {[*self.n_products]}, n_directions = {self.n_directions}, n_grams = {self.n_grams}",
            f"n_products of [0, 0], or of 1 to {MOST_PRODUCTS} in all, the second at most n_directions, and no n-grams",
        )

    @property
    def n_companion_states(self) -> int:
        """Number of values that are read of the companion; they follow those of the base model."""
        return self.companion.n_states if self.companion is not None else 0

    @property
    def n_base_states(self) -> int:
        """Number of values that are read of the base model."""
        return self.n_states - self.n_companion_states


@dataclass(frozen=True, slots=True, kw_only=True)
class FamiliarityConfig:
    """Settings of a familiarity, which tells how far a question is from the training rows.

    Attributes:
        kind: the parts of the distance: the Gaussian of the prompt, the direction, both, or the Gaussians of the prompt
            and of the question's own choices.
        depths: depths of the states, those of the head.
        n_states: F, the number of states at all depths together.
        n_low: number of the leading states that the Gaussian reads.
        n_directions: K, the number of the Gaussian's directions, the same for both Gaussians.
        n_axes: R, the number of axes that separate the labels; 0 without labels.
        n_labels: C, the number of labels; 0 without labels.
        sharpness: k of the soft maximum log(sum(exp(k * cosine))) / k over the labels; None for the maximum itself.
        n_reference: number of reference distances.
        guesses_beyond: distance beyond which answers are mostly guesses; None for no guesses.
    """

    __pydantic_config__: ClassVar[ConfigDict] = _STRICT

    kind: FamiliarityKind
    depths: tuple[int, ...]
    n_states: int
    n_low: int
    n_directions: int
    n_axes: int = 0
    n_labels: int = 0
    sharpness: float | None = None
    n_reference: int = 1
    guesses_beyond: float | None = None

    def __post_init__(self) -> None:
        beyond = self.guesses_beyond
        require(beyond is None or isfinite(beyond), f"guesses_beyond = {beyond}", "a finite distance, or none")
        require(self.kind in get_args(FamiliarityKind), f"kind = {self.kind!r}", "gaussian, direction, both or choices")
        has_axes = int(self.kind in ("direction", "both"))
        for name, least, most in (
            ("n_states", 1, MOST_STATES),
            ("n_low", 2, self.n_states),
            ("n_directions", 1, self.n_low - 1),
            ("n_axes", has_axes, MOST_CHOICES),
            ("n_labels", has_axes, MOST_CHOICES),
            ("n_reference", 1, MOST_REFERENCE),
        ):
            value = getattr(self, name)
            require(least <= value <= most, f"{name} = {value}", f"{least} to {most}")
        require(
            self.sharpness is None or 1 <= self.sharpness <= MOST_SHARPNESS,
            f"sharpness = {self.sharpness}",
            f"1 to {MOST_SHARPNESS}",
        )
        require(
            bool(self.depths) and self.n_states % len(self.depths) == 0,
            f"{self.n_states} states at depths {list(self.depths)}",
            "equally many at each depth",
        )


def _check_depths(depths: tuple[int, ...]) -> None:
    require(
        0 < len(depths) <= MOST_DEPTHS and depths[0] >= 0 and list(depths) == sorted(set(depths)),
        f"depths = {list(depths)}",
        f"1 to {MOST_DEPTHS} layers in rising order",
    )
