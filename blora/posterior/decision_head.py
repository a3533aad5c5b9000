"""The decision head: a linear readout of a question's features, with a Gaussian posterior over its weights.

The features of a question are `states`, hidden states of the language model averaged over tokens, and for fixed choices
the n-grams of its text, otherwise `counts`, further numbers about each choice. States are standardised and projected on
the leading directions of the training rows' states:

    z = directions ((states - center) / scale),   logits = z W + c V + bias

c are the TF-IDF weights of the n-grams, or the counts times `count_scale`. Where choices come with the question, z may
be followed by products: of each direction p of the prompt's states, projected as those of a choice are, with each
leading direction of z, so that a choice is read in the light of the prompt. The posterior over W is Gaussian: W =
weight + (noise * deviation) basis^T, the form of a Kronecker-factored Laplace approximation in its eigenvectors. V and
the bias are points.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields, replace

import torch
from torch import Tensor

from blora.config import HeadConfig, PromptConfig
from blora.errors import ShapeError
from blora.posterior.draws import Draws
from blora.posterior.inducing import check_width
from blora.posterior.noise import Noise, standard_normal
from blora.posterior.posterior import Posterior
from blora.posterior.tf_idf import SparseRows, tf_idf

__all__ = ["N_SCORES", "DecisionHead", "Features", "HeadDraws", "HeadPosterior", "head_bytes", "head_shapes"]

# Numbers that a pointer head reads of a choice beside its states: log-probability, the same per token, log length.
N_SCORES = 3
FLOAT_BYTES = 4
# Tensors that only a head with products has.
OF_PRODUCTS = ("prompt_center", "prompt_scale", "prompt_directions")


@dataclass(frozen=True, slots=True)
class Features:
    """Features of B questions, of B questions with C choices each, or of the R choices of B questions, row after row.

    Attributes:
        states: (B, F), (B, C, F) or (R, F) mean hidden states at the head's depths, side by side, those of a companion
            last.
        counts: (B, C, M) or (R, M) further numbers about choices that come with the question; (B, 0) for fixed ones.
        prompt: (B, F) the states of the prompts in the base model alone, which tell how familiar a question
            is; None if not read.
        owner: (R,) the question of each choice, for choices row after row, which need no padding; None otherwise.
        sizes: (B,) number of choices of each question, for states (B, C, F); None otherwise.
        grams: for fixed choices, (2, n) int32 for each text: its different n-grams in rising order, and how often each
            occurs.
    """

    states: Tensor
    counts: Tensor
    prompt: Tensor | None = None
    owner: Tensor | None = None
    sizes: Tensor | None = None
    grams: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.states) if self.owner is None else 1 + int(self.owner[-1])

    def at(self, places: Sequence[int]) -> "Features":
        """Return the features of the questions at some places, which may recur."""
        rows = picked = torch.tensor(list(places), dtype=torch.long, device=self.states.device)
        owner = None
        if self.owner is not None:
            sizes = self.owner.bincount()
            choices = torch.arange(len(self.owner)).split(sizes.tolist())
            rows, owner = (
                torch.cat([choices[i] for i in places]),
                torch.arange(len(picked)).repeat_interleave(sizes[picked]),
            )
        prompt, n_choices = (part[picked] if part is not None else None for part in (self.prompt, self.sizes))
        grams = tuple(self.grams[i] for i in places) if self.grams else ()
        return Features(self.states[rows], self.counts[rows], prompt, owner, n_choices, grams)

    def beside(self, other: "Features") -> "Features":
        """Return the features of these questions and of others, neither of which stand padded as (B, C, F)."""

        def both(one: Tensor | None, another: Tensor | None) -> Tensor | None:
            return torch.cat([one, another]) if one is not None and another is not None else None

        owner = both(self.owner, other.owner + len(self) if other.owner is not None else None)
        states, counts = torch.cat([self.states, other.states]), torch.cat([self.counts, other.counts])
        return Features(states, counts, both(self.prompt, other.prompt), owner, grams=(*self.grams, *other.grams))

    def choices(self) -> tuple[Tensor, Tensor] | None:
        """Return the states (R, F) of the questions' own choices, row after row, and the question (R,) of each."""
        if self.owner is not None:
            return self.states, self.owner
        if self.sizes is None:
            return None
        present = torch.arange(self.states.shape[1], device=self.sizes.device) < self.sizes[:, None]
        return self.states[present], present.nonzero()[:, 0]


@dataclass(frozen=True, slots=True)
class DecisionHead:
    """The posterior over a head's weights, and how features are read: F states, K directions, M counts, O outputs.

    O is the number of fixed choices, or 1 for a head that gives each choice of a question a number.

    Attributes:
        config: the settings of what is read.
        center: (F,) mean of the training rows' states.
        scale: (F,) their standard deviations.
        directions: (K, F) projection of the standardised states, rounded to float16, in which it is stored.
        count_scale: (M,) factors on the counts, or inverse document frequencies of n-grams.
        weight: (K + P * Q, O) posterior mean of W, for K directions and the products of P x Q directions.
        deviation: (K + P * Q, O) standard deviations of W in the basis.
        basis: (O, O) orthonormal, one vector per column.
        count_weight: (M, O) V.
        bias: (O,).
        prompt_center: (F,) mean of the training rows' prompts; empty without products, as the other two.
        prompt_scale: (F,) their standard deviations.
        prompt_directions: (P, F) projection of a prompt's standardised states, rounded to float16.
        grams: (M,) int32 the n-grams that have weights, in rising order; empty for choices that come with a question.
    """

    config: HeadConfig
    center: Tensor
    scale: Tensor
    directions: Tensor
    count_scale: Tensor
    weight: Tensor
    deviation: Tensor
    basis: Tensor
    count_weight: Tensor
    bias: Tensor
    prompt_center: Tensor = field(default_factory=lambda: torch.zeros(0))
    prompt_scale: Tensor = field(default_factory=lambda: torch.zeros(0))
    prompt_directions: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    grams: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int32))

    @property
    def n_outputs(self) -> int:
        """O, the number of outputs."""
        return self.weight.shape[-1]

    def project(self, states: Tensor) -> Tensor:
        """Return z (..., K) float32 of states (..., F)."""
        return ((states.float() - self.center) / self.scale) @ self.directions.T

    def project_prompt(self, states: Tensor) -> Tensor:
        """Return p (..., P) float32 of a prompt's states (..., F)."""
        return ((states.float() - self.prompt_center) / self.prompt_scale) @ self.prompt_directions.T

    def without_products(self) -> "DecisionHead":
        """Return a head of the same projection that reads no products."""
        own = len(self.directions)
        kept = {name: tensor for name, tensor in self.tensors().items() if name not in OF_PRODUCTS}
        kept |= {"weight": self.weight[:own], "deviation": self.deviation[:own]}
        return DecisionHead(replace(self.config, n_products=(0, 0)), **kept)

    def scaled(self, counts: Tensor) -> Tensor:
        """Return c (..., M) of the counts (..., M) of choices."""
        return counts.float() * self.count_scale

    def weighted(self, grams: Sequence[Tensor]) -> SparseRows:
        """Return c (B, M) of the n-grams of texts, as `Features` has them."""
        return tf_idf(grams, self.grams, self.count_scale)

    def mean(self, lora: Draws) -> "HeadDraws":
        """Return the posterior mean as one draw, on top of a LoRA."""
        return HeadDraws(self, self.weight[None], lora)

    def sample_from(self, noise: Noise, lora: Draws) -> "HeadDraws":
        """Return exact posterior draws from the caller's noise, on top of a LoRA."""
        made = (noise.mirrored() if self.config.mirrored else noise).like(self.weight)
        return HeadDraws(self, self.weight + (made * self.deviation) @ self.basis.T, lora)

    def widen(self, factor: float) -> "DecisionHead":
        """Return the posterior with its standard deviations multiplied by a factor.

        Raises:
            ConfigError: if the factor is not positive and finite.
        """
        check_width(factor)
        return replace(self, deviation=self.deviation * factor)

    def to(self, device: torch.device) -> "DecisionHead":
        """Return the head on another device."""
        return DecisionHead(self.config, **{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """Return the head's tensors by name, as they are stored."""
        absent = {*(() if self.config.n_products[0] else OF_PRODUCTS), *(() if self.config.n_grams else ("grams",))}
        return {field.name: getattr(self, field.name) for field in fields(self)[1:] if field.name not in absent}


class HeadPosterior:
    """A posterior over a head's weights, above a plain LoRA.

    Args:
        head: the head.
        lora: the LoRA below it, a point; without modules if the base model is unchanged.
    """

    def __init__(self, head: DecisionHead, lora: Posterior) -> None:
        self.head = head
        self.lora = lora

    def sample(self, n_samples: int, generator: torch.Generator) -> "HeadDraws":
        """Return S exact posterior draws; the first k do not depend on S."""
        return self.sample_from(standard_normal(n_samples, generator))

    def sample_from(self, noise: Noise) -> "HeadDraws":
        """Return exact posterior draws from the caller's noise."""
        return self.head.sample_from(noise, self.lora.mean())

    def mean(self) -> "HeadDraws":
        """Return the posterior mean as one draw."""
        return self.head.mean(self.lora.mean())

    def widen(self, factor: float) -> None:
        """Multiply the standard deviations by a factor, in place.

        Raises:
            ConfigError: if the factor is not positive and finite.
        """
        self.head = self.head.widen(factor)


@dataclass(frozen=True, slots=True)
class HeadDraws:
    """S immutable draws of a head's weights; the LoRA below is the same in every draw.

    Attributes:
        head: the head.
        weights: (S, K, O) draws of W.
        lora: the LoRA below the head, one draw; without modules if there is none.
    """

    head: DecisionHead
    weights: Tensor
    lora: Draws

    @property
    def n_samples(self) -> int:
        """S, the number of draws."""
        return len(self.weights)

    def first(self, n_samples: int) -> "HeadDraws":
        """Return the first draws, as `part(0, n_samples)`."""
        return self.part(0, n_samples)

    def part(self, start: int, stop: int) -> "HeadDraws":
        """Return draws start to stop - 1, as views."""
        return replace(self, weights=self.weights[start:stop])

    def to(self, device: torch.device) -> "HeadDraws":
        """Return the same draws on another device."""
        return HeadDraws(self.head.to(device), self.weights.to(device), self.lora.to(device))

    def logits(self, features: Features) -> Tensor:
        """Return the logits (S, B, O) of questions, or (S, B, C) or (S, R) of the choices of questions.

        Raises:
            ShapeError: if the features are not those of this head.
        """
        head = self.head
        sizes = features.states.shape[-1], features.counts.shape[-1]
        if sizes != (expected := (len(head.center), len(head.count_scale) - len(head.grams))):
            raise ShapeError(f"got {sizes} states and counts of a question, expected {expected}, as in training")
        if len(head.grams):
            if len(features.grams) != len(features.states):
                raise ShapeError(f"got n-grams of {len(features.grams)} texts, expected {len(features.states)}")
            point = head.weighted(features.grams).times(head.count_weight) + head.bias
        else:
            point = head.scaled(features.counts) @ head.count_weight + head.bias
        z, own, owner = head.project(features.states), len(head.directions), features.owner
        found = torch.einsum("...k,sko->s...o", z, self.weights[:, :own]) + point
        if features.states.ndim == 2 and owner is None:
            return found
        n_prompt, n_choice = head.config.n_products
        if n_prompt:
            assert features.prompt is not None  # whoever reads choices reads the prompt
            of_products = self.weights[:, own:, 0].view(-1, n_prompt, n_choice)
            on_choice = torch.einsum("bp,spq->sbq", head.project_prompt(features.prompt), of_products)
            if owner is None:
                products = torch.einsum("bcq,sbq->sbc", z[..., :n_choice], on_choice)
            else:
                products = torch.stack([(z[:, :n_choice] * of_draw[owner]).sum(-1) for of_draw in on_choice])
            found = found + products[..., None]
        return found[..., 0]


def head_shapes(config: HeadConfig, prompt: PromptConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of each tensor of a head by its name.

    Args:
        config: the head's settings.
        prompt: the kind of the head, and its fixed choices.
    """
    n_states, n_directions, (n_prompt, n_choice) = config.n_states, config.n_directions, config.n_products
    n_weights = n_directions + n_prompt * n_choice
    of_products = dict(zip(OF_PRODUCTS, ((n_states,), (n_states,), (n_prompt, n_states)), strict=True))
    linear = prompt.readout == "linear"
    n_counts, n_outputs = (config.n_grams, len(prompt.choices or ())) if linear else (N_SCORES, 1)
    return {
        "center": (n_states,),
        "scale": (n_states,),
        "directions": (n_directions, n_states),
        "count_scale": (n_counts,),
        "weight": (n_weights, n_outputs),
        "deviation": (n_weights, n_outputs),
        "basis": (n_outputs, n_outputs),
        "count_weight": (n_counts, n_outputs),
        "bias": (n_outputs,),
        **(of_products if n_prompt else {}),
        **({"grams": (n_counts,)} if linear and n_counts else {}),
    }


def head_bytes(shapes: Mapping[str, tuple[int, ...]], n_samples: int) -> int:
    """Return the most memory of a head and its S draws, in bytes, while they are made and afterwards."""
    drawn = n_samples * math.prod(shapes["weight"])
    # Tensors twice: on the CPU and on the device. Draws with their noise, scaled and rotated.
    return FLOAT_BYTES * (2 * sum(map(math.prod, shapes.values())) + 3 * drawn)
