"""Principal directions of rows, by the smaller of their two Gram matrices, and which columns of rows vary at all."""

import torch
from scipy.linalg import eigh
from torch import Tensor
from torch.nn.functional import normalize

from blora.posterior.noise import generator_of

__all__ = ["principal_directions", "varies"]

# Variance of a direction, relative to that of the first, up to which it is rounding.
LEAST_SHARE = 1e-6
# Spread of a column, relative to the usual size of columns, up to which rows differ in it by rounding alone.
LEAST_SPREAD = 1e-4


def varies(spread: Tensor, rows: Tensor) -> Tensor:
    """Return a mask (F,) of the columns of rows (N, F) whose standard deviations (F,) are more than rounding."""
    return spread > LEAST_SPREAD * rows.square().mean(0).sqrt().median()


def principal_directions(rows: Tensor, n_directions: int, most: int) -> tuple[Tensor, Tensor]:
    """Return the leading principal directions of centred rows, and the rows' variances on them, in float64.

    Args:
        rows: (N, F) rows.
        n_directions: largest number of directions; they are fewer if the rows span fewer.
        most: largest size of the Gram matrix. If there are more rows and more columns, so many rows are drawn at
            random.

    Returns:
        Orthonormal directions (K, F), each with a positive largest entry, and falling variances (K,).
    """
    if min(rows.shape) > most:  # evenly spaced rows could all be the first choice of their question
        rows = rows[torch.randperm(len(rows), generator=generator_of(0))[:most]]
    wide = rows.shape[1] > rows.shape[0]
    gram = (rows @ rows.T if wide else rows.T @ rows).double().numpy()
    found, basis = eigh(gram, subset_by_index=[max(0, len(gram) - n_directions), len(gram) - 1])  # in rising order
    values, vectors = torch.from_numpy(found).flip(0), torch.from_numpy(basis).flip(1).T
    kept = max(1, int((values > LEAST_SHARE * values[0]).sum()))
    values, vectors = values[:kept], vectors[:kept]
    directions = normalize(vectors @ rows.double(), dim=-1) if wide else vectors
    largest = directions.gather(1, directions.abs().argmax(1, keepdim=True))  # rounding decides a vector's sign
    return directions * largest.sign(), values / len(rows)
