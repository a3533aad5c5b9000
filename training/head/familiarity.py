"""Fitting of a familiarity on states that have been read, with its kind chosen by labels that are held out.

Where choices come with the question, the distance is that of the Gaussians of the prompt and of the choices. With
labels there are three candidates, `KINDS`, which labels that they have not seen judge: groups of similar labels are
left out in turn, the other training rows fit the distance, and the AUROC says how well it tells the left-out rows from
validation rows of the other labels. No foreign question takes part. With many labels the direction tends to win,
because a foreign question resembles none of them; with few, whose axes span little, both parts together do.

A left-out label is of the same subject as the others, so that this judge favours what tells labels apart over what
notices another subject: on BANKING77 it chooses the direction, where both parts would notice CLINC150's rows better.
"""

import logging
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize, pad

from blora.config import FamiliarityConfig, FamiliarityKind
from blora.config.head import MOST_REFERENCE
from blora.decision.curves import auroc
from blora.decision.familiarity import MOST_BYTES, Familiarity
from blora.decision.guesses import beginning_of_guesses
from blora.errors import ShapeError
from blora.posterior.decision_head import Features
from blora.posterior.noise import generator_of
from blora.training.head.principal import principal_directions, varies
from blora.training.rows.packed import LabelledRow, labels_of, n_texts_of

__all__ = ["N_LOW_DEPTHS", "Candidate", "FittedFamiliarity", "familiarity_of", "fit_familiarity", "with_guesses"]

logger = logging.getLogger(__name__)

# The kinds that labels choose between.
KINDS: tuple[FamiliarityKind, ...] = ("gaussian", "direction", "both")
# The Gaussian reads the states at the lower two depths, which know subject, language and form best.
N_LOW_DEPTHS = 2
N_DIRECTIONS, N_AXES = 256, 96
# Sharpness of the soft maximum over the labels, for the direction alone: both parts together scale the cosines down,
# and a soft maximum of small cosines counts labels.
SHARPNESS = 7.0
# Shrinkage of the covariance within labels to its diagonal.
SHRINKAGE = 0.2
# The most directions in which labels are separated, and the largest size of the Gram matrix behind directions.
MOST_DIMENSIONS, MOST_GRAM = 3072, 8192
MOST_FOLDS = 5
K_MEANS_STEPS = 20
LEAST_VARIANCE, LEAST_SPREAD = 1e-6, 1e-6
# A log g that varies less does so by rounding, as that of one prompt alone. Beside another part it does not count.
ROUNDING, IGNORED = 1e-3, 1e9
# Least strength of an axis as a share of the greatest: labels with the same mean have no axis between them.
LEAST_STRENGTH = 1e-10
# Labels need rows to have means and a covariance; with fewer the Gaussian alone is fitted.
LEAST_LABELS, LEAST_ROWS_PER_LABEL = 3, 3


@dataclass(frozen=True, slots=True)
class Candidate:
    """Mean AUROC of a kind of distance for left-out labels against validation rows of the others."""

    kind: FamiliarityKind
    auroc: float


@dataclass(frozen=True, slots=True)
class FittedFamiliarity:
    """A familiarity of the kind that tells left-out labels best.

    Attributes:
        familiarity: the familiarity.
        candidates: every kind that was tried; empty if there was no choice.
    """

    familiarity: Familiarity
    candidates: tuple[Candidate, ...]


def familiarity_of(
    depths: Sequence[int],
    features: Features,
    rows: Sequence[LabelledRow],
    validation_features: Features,
    validation: Sequence[LabelledRow],
) -> FittedFamiliarity:
    """Return the familiarity of rows, by labels where they are fixed.

    Args:
        depths: depths of the states, ascending.
        features: features of the rows.
        rows: the rows.
        validation_features: features of the validation rows.
        validation: rows that standardise the distance, help to choose its kind, and are the reference of p-values.
    """
    fixed = rows[0].row.readout == "linear"

    def labels(of: Sequence[LabelledRow]) -> Tensor | None:
        return torch.tensor([row.row.outputs[row.label] for row in of]) if fixed else None

    assert features.prompt is not None
    assert validation_features.prompt is not None  # `read_features` reads them
    own, of_validation = features.choices(), validation_features.choices()
    choices = (own[0], of_validation) if own is not None and of_validation is not None else None
    prompts = features.prompt, validation_features.prompt
    return fit_familiarity(depths, *prompts, labels(rows), labels(validation), choices)


def with_guesses(
    familiarity: Familiarity, probs: Tensor, rows: Sequence[LabelledRow], further: Tensor | None = None
) -> Familiarity:
    """Return a familiarity with the distance beyond which answers are guesses, if there are enough rows to tell it.

    Args:
        familiarity: the familiarity.
        probs: (S, N, C) recalibrated probabilities of validation rows under the adapter's draws.
        rows: the N rows.
        further: (M,) distances of rows beside the reference, none of which is beyond either; None for no such rows.
    """
    known = familiarity.reference if further is None else torch.cat([familiarity.reference, further])
    beyond = beginning_of_guesses(known, probs, labels_of(rows), len(rows) / n_texts_of(rows))
    return replace(familiarity, config=replace(familiarity.config, guesses_beyond=beyond))


def fit_familiarity(
    depths: Sequence[int],
    states: Tensor,
    validation: Tensor,
    labels: Tensor | None = None,
    validation_labels: Tensor | None = None,
    choices: tuple[Tensor, tuple[Tensor, Tensor]] | None = None,
) -> FittedFamiliarity:
    """Return the familiarity of training rows.

    Args:
        depths: depths of the states, ascending.
        states: (N, F) mean states of the training rows at these depths, side by side.
        validation: (M, F) of rows that were not trained on, which standardise the distance and help to choose.
        labels: (N,) labels of the training rows, of fixed choices; None if choices come with the question.
        validation_labels: (M,) labels of the validation rows.
        choices: the states (R, F) of the training rows' own choices, and of the validation rows' choices with the row
            of each, as `Familiarity.distance` takes them; None for fixed choices.

    Raises:
        ShapeError: if the shapes do not fit.
    """
    for rows, found in ((states, labels), (validation, validation_labels)):
        if rows.ndim != 2 or rows.shape[1] != states.shape[1] or (found is not None and len(found) != len(rows)):
            shapes = f"states {tuple(rows.shape)} and labels {None if found is None else tuple(found.shape)}"
            raise ShapeError(f"got {shapes}, expected (N, {states.shape[-1]}) and (N,)")
    if choices is not None:
        return FittedFamiliarity(_of_choices(_fit(depths, states, None), choices, validation), ())
    if labels is None or validation_labels is None or not _enough(labels):
        return FittedFamiliarity(_of_kind(_fit(depths, states, None), "gaussian", validation), ())
    earned: dict[FamiliarityKind, list[float]] = {kind: [] for kind in KINDS}
    for held in _folds(states, labels):
        train, familiar = ~torch.isin(labels, held), ~torch.isin(validation_labels, held)
        if familiar.sum() < 2 or not _enough(labels[train]):
            continue
        fitted = _fit(depths, states[train], labels[train])
        foreign = torch.cat([states[~train], validation[~familiar]])
        for kind in KINDS:
            one = _of_kind(fitted, kind, validation[familiar])
            distances = one.distance(torch.cat([validation[familiar], foreign]))
            told = auroc(distances, torch.arange(len(distances)) >= familiar.sum())
            assert told is not None  # there are rows of both
            earned[kind].append(told)
    fitted = _fit(depths, states, labels)
    candidates = tuple(Candidate(kind, sum(found) / len(found)) for kind, found in earned.items() if found)
    for candidate in candidates:
        logger.info("familiarity, %s: AUROC %.3f of labels that are left out", candidate.kind, candidate.auroc)
    best: FamiliarityKind = max(candidates, key=lambda candidate: candidate.auroc).kind if candidates else "gaussian"
    return FittedFamiliarity(_of_kind(fitted, best, validation), candidates)


def _enough(labels: Tensor) -> bool:
    counts = labels.unique(return_counts=True)[1]
    return len(counts) >= LEAST_LABELS and len(labels) >= LEAST_ROWS_PER_LABEL * len(counts)


def _of_kind(fitted: Familiarity, kind: FamiliarityKind, validation: Tensor) -> Familiarity:
    """Return a familiarity as one of a kind, standardised by validation rows, without tensors that it does not need."""
    config = replace(fitted.config, kind=kind, sharpness=SHARPNESS if kind == "direction" else None)
    if kind == "gaussian":
        config = replace(config, n_axes=0, n_labels=0)
        fitted = replace(fitted, axes=fitted.axes[:0], labels=fitted.labels[:0, :0])
    return _standardised(replace(fitted, config=config), validation)


def _of_choices(fitted: Familiarity, choices: tuple[Tensor, tuple[Tensor, Tensor]], validation: Tensor) -> Familiarity:
    """Return a familiarity with a Gaussian of the choices' states too, standardised by validation rows."""
    train, of_validation = choices
    config = replace(fitted.config, kind="choices")
    found = _gaussian(train.float()[:, : config.n_low], config.n_directions)
    missing = config.n_directions - len(found.directions)  # the choices' states may span fewer
    fitted = replace(
        fitted,
        config=config,
        choice_center=found.center,
        choice_scale=found.scale,
        choice_directions=pad(found.directions, (0, 0, 0, missing)),
        choice_variances=pad(found.variances, (0, missing), value=1.0),
        choice_residual=found.residual,
    )
    return _standardised(fitted, validation, of_validation)


def _standardised(fitted: Familiarity, validation: Tensor, choices: tuple[Tensor, Tensor] | None = None) -> Familiarity:
    """Return a familiarity whose parts are standardised by validation rows, with these rows as its reference."""
    parts = fitted.parts(validation, choices)
    spread = parts.std(0, correction=0).clamp_min(LEAST_SPREAD)
    if len(fitted.used) > 1 and spread[0] < ROUNDING:
        spread[0] = IGNORED
    fitted = replace(fitted, middle=parts.mean(0), spread=spread)
    # Of very many rows any will do, but the first ones may be those of some labels only.
    some = torch.randperm(len(validation), generator=generator_of(0))[:MOST_REFERENCE]
    reference = fitted.distance(validation, choices)[some]
    return replace(fitted, config=replace(fitted.config, n_reference=len(reference)), reference=reference)


def _fit(depths: Sequence[int], states: Tensor, labels: Tensor | None) -> Familiarity:
    """Return a familiarity of training rows, with every part that they allow, not yet standardised."""
    states = states.float()
    n_rows, n_states = states.shape
    center = states.mean(0)
    scale = _scale(states)
    x = (states - center) / scale
    n_low = n_states // len(depths) * min(N_LOW_DEPTHS, len(depths))
    n_directions = max(1, min(N_DIRECTIONS, n_rows // 4, n_low - 1, MOST_BYTES // 4 // (2 * n_low)))
    _, _, directions, variances, residual = _gaussian(states[:, :n_low], n_directions)
    axes, means = torch.zeros(0, n_states), torch.zeros(0, 0)
    if labels is not None:
        n_labels = len(labels.unique())
        left = MOST_BYTES - 8 * n_states - 2 * len(directions) * n_low - 4 * (len(directions) + MOST_REFERENCE) - 64
        most = min(N_AXES, n_labels - 1, left // (2 * n_states + 4 * n_labels))
        axes, means = _axes(x, labels, most)
    config = FamiliarityConfig(
        kind="both" if len(axes) else "gaussian",
        depths=tuple(depths),
        n_states=n_states,
        n_low=n_low,
        n_directions=len(directions),
        n_axes=len(axes),
        n_labels=len(means),
    )
    zero = torch.zeros(2)
    return Familiarity(config, center, scale, directions, variances, residual, axes, means, zero, zero + 1, zero[:1])


def _scale(states: Tensor) -> Tensor:
    """Return the standard deviations (F,) of states (N, F), and 1 where rows differ by rounding alone."""
    spread = states.std(0, correction=0)
    return torch.where(varies(spread, states), spread, 1.0)


class _Gaussian(NamedTuple):
    """One Gaussian of states (N, n_low): see the attributes of `Familiarity`."""

    center: Tensor
    scale: Tensor
    directions: Tensor
    variances: Tensor
    residual: Tensor


def _gaussian(states: Tensor, n_directions: int) -> _Gaussian:
    """Return the Gaussian of states (N, n_low), with at most a number of leading directions."""
    center, scale = states.mean(0), _scale(states)
    low = (states - center) / scale
    directions = principal_directions(low, n_directions, MOST_GRAM)[0].half().float()
    variances = (low @ directions.T).square().mean(0).clamp_min(LEAST_VARIANCE)
    beyond = low - low @ directions.T @ directions
    residual = beyond.square().sum() / (len(low) * (low.shape[1] - len(directions)))
    return _Gaussian(center, scale, directions, variances, residual.clamp_min(LEAST_VARIANCE)[None])


def _axes(x: Tensor, labels: Tensor, most: int) -> tuple[Tensor, Tensor]:
    """Return the axes (R, F) that separate labels, rounded to float16, and the labels' means on them, of unit length.

    On the axes rows of one label have about unit variance in every direction.
    """
    _, label = labels.unique(return_inverse=True)
    counts = label.bincount().double()
    basis = None
    if x.shape[1] > MOST_DIMENSIONS:
        basis = principal_directions(x, min(MOST_DIMENSIONS, len(x) - 1), MOST_GRAM)[0].float()
    z = x if basis is None else x @ basis.T
    means = torch.zeros(len(counts), z.shape[1]).index_add(0, label, z) / counts[:, None].float()
    weighted = (counts / counts.sum()).sqrt()[:, None] * means.double()
    solved = _over_covariance(weighted, z - means[label])
    # With a covariance S within labels and means M, the axes are the leading eigenvectors U of M S^-1 M^T times M S^-1.
    strengths, vectors = torch.linalg.eigh(weighted @ solved.T)
    kept = [k for k in range(len(counts) - 1, -1, -1)[:most] if strengths[k] >= LEAST_STRENGTH * strengths[-1]]
    lengths = strengths[kept, None].clamp_min(torch.finfo(strengths.dtype).tiny).sqrt()
    axes = (vectors[:, kept].T @ solved / lengths).float()
    axes = (axes if basis is None else axes @ basis).half().float()
    on_axes = torch.zeros(len(counts), len(axes)).index_add(0, label, x @ axes.T)
    return axes, normalize(on_axes, dim=-1)


def _over_covariance(means: Tensor, within: Tensor) -> Tensor:
    """Return means (C, F) times the inverse of the shrunk covariance (F, F) of centred rows (N, F), in float64.

    Of few rows, the inverse is taken in the dimensions of the rows, by the Woodbury identity.
    """
    n_rows, n_states = within.shape
    diagonal = within.square().mean(0).double().clamp_min(LEAST_VARIANCE)
    solved: Tensor
    if 2 * n_rows < n_states:
        root = (SHRINKAGE * diagonal).sqrt()
        scaled, whitened = math.sqrt((1 - SHRINKAGE) / n_rows) * within.double() / root, means / root
        factor = torch.linalg.cholesky(torch.eye(n_rows, dtype=root.dtype) + scaled @ scaled.T)
        solved = torch.cholesky_solve(scaled @ whitened.T, factor)
        return (whitened - solved.T @ scaled) / root
    covariance = (within.T @ within).double().mul_((1 - SHRINKAGE) / n_rows)
    covariance.diagonal().add_(SHRINKAGE * diagonal)
    factor = torch.linalg.cholesky(covariance)
    solved = torch.cholesky_solve(means.T, factor)
    return solved.T


def _folds(states: Tensor, labels: Tensor) -> Iterator[Tensor]:
    """Yield the labels that are left out together: each alone if there are few, otherwise groups of similar ones."""
    present, label = labels.unique(return_inverse=True)
    if len(present) <= MOST_FOLDS + 2:
        yield from present.split(1)
        return
    x = states.float() - states.float().mean(0)
    sums = torch.zeros(len(present), x.shape[1]).index_add(0, label, x / _scale(x))
    means = normalize(sums, dim=-1)
    group = _k_means(means, MOST_FOLDS)
    for fold in group.unique():
        yield present[group == fold]


def _k_means(points: Tensor, k: int) -> Tensor:
    """Return the group (N,) of each point; starting from points far from one another, without chance."""
    centers = points[:1]
    while len(centers) < k:
        farthest = torch.cdist(points, centers).amin(1).argmax()
        centers = torch.cat([centers, points[farthest][None]])
    for _ in range(K_MEANS_STEPS):
        group = torch.cdist(points, centers).argmin(1)
        sums = torch.zeros_like(centers).index_add(0, group, points)
        counts = group.bincount(minlength=k)[:, None]
        centers = torch.where(counts > 0, sums / counts.clamp_min(1), centers)
    return group
