"""Inputs of a decision head on labelled rows, as a linear map from its weights to logits.

The weights are those of projected states, of products, of counts, and the bias. A product is that of one direction of
the prompt's states and one leading direction of a choice's: there are too many to be kept for each choice.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix
from scipy.special import softmax

__all__ = ["Floats", "HeadInputs", "Vector"]

Vector = NDArray[np.float64]
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class HeadInputs:
    """N questions, or the R choices of N questions, row after row.

    Attributes:
        z: (N or R, K) projected states.
        counts: (N or R, M) scaled counts.
        owner: (R,) the question of each choice; None for fixed choices.
        prompts: (N, P) projected states of the prompts; P = 0 without products.
        n_choice: Q, number of the leading columns of z that enter products.
    """

    z: Floats
    counts: csr_matrix
    owner: NDArray[np.int64] | None
    prompts: Floats
    n_choice: int

    @property
    def unit_of_products(self) -> float:
        """Mean square of a product; the prompts' projected states have a mean square of 1."""
        return float(np.square(self._leading).mean()) if self.n_choice else 1.0

    @property
    def _leading(self) -> Floats:
        """(R, Q) leading columns of z."""
        return self.z[:, : self.n_choice]

    def logits(self, weights: Sequence[Floats]) -> Floats:
        """Return the logits (N or R, O).

        Args:
            weights: of states (K, O), of products (P * Q, O), of counts (M, O), and the bias (1, O).
        """
        weight, of_products, count_weight, bias = weights
        logits: Floats = self.z @ weight + self.counts @ count_weight + bias
        if self.n_choice:
            on_choice = self.prompts @ of_products.reshape(-1, self.n_choice)
            logits += (on_choice[self.owner] * self._leading).sum(1, keepdims=True)
        return logits

    def gradients(self, residual: Floats) -> list[Floats]:
        """Return the gradient of each part of the weights, given that of the logits."""
        of_products = np.zeros((0, residual.shape[1]), "f")
        if self.n_choice:
            of_products = (self.prompts.T @ self._by_question(residual * self._leading)).reshape(-1, 1)
        return [self.z.T @ residual, of_products, self.counts.T @ residual, residual.sum(0, keepdims=True)]

    def squares(self, weights: Floats) -> list[Floats]:
        """Return the sum over rows of each input's square times the row's weights (N or R, O), part by part."""
        of_products = np.zeros((0, weights.shape[1]), "f")
        if self.n_choice:
            of_products = self._over_products(weights * np.square(self._leading))[:, None].astype("f")
        of_counts = self.counts.power(2).T @ weights
        return [np.square(self.z).T @ weights, of_products, of_counts, weights.sum(0, keepdims=True)]

    def probabilities(self, logits: Floats) -> Floats:
        """Return the softmax over outputs, or over the choices of each question."""
        if self.owner is None:
            probs: Floats = softmax(logits, 1)
            return probs
        shifted: Floats = np.exp(logits - np.maximum.reduceat(logits, self._starts())[self.owner])
        return np.asarray(shifted / self._by_question(shifted)[self.owner], "f")

    def curvature(self, probs: Floats) -> tuple[Vector, Vector, Vector]:
        """Return a (K + P * Q,), the basis (O, O) and g (O,) of the Laplace approximation at probabilities."""
        if self.owner is None:
            fisher = np.diag(probs.mean(0)) - probs.T @ probs / len(probs)
            values, vectors = np.linalg.eigh(fisher.astype("d"))
            return np.square(self.z).sum(0, dtype="d"), vectors, np.maximum(values, 0)
        spread = probs * np.square(self.z - self._by_question(probs * self.z)[self.owner])
        of_products = self._over_products(spread[:, : self.n_choice]) if self.n_choice else np.zeros(0)
        return np.concatenate([spread.sum(0, dtype="d"), of_products]), np.eye(1), np.ones(1)

    def _over_products(self, of_choices: Floats) -> Vector:
        """Return the sum over rows of a quantity of the leading columns (R, Q) times the squared prompts, (P * Q,)."""
        found: Vector = (np.square(self.prompts).T @ self._by_question(of_choices)).ravel().astype("d")
        return found

    def _by_question(self, of_choices: Floats) -> Floats:
        """Return the sums over the choices of each question."""
        sums: Floats = np.add.reduceat(of_choices, self._starts())
        return sums

    def _starts(self) -> NDArray[np.int64]:
        """Return the row of each question's first choice."""
        assert self.owner is not None  # only choices that come with questions are summed by question
        return np.flatnonzero(np.diff(self.owner, prepend=-1))
