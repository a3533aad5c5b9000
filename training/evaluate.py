"""Evaluation of an adapter, or of the untouched base model, on labelled rows."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from transformers import PreTrainedModel

from blora.config import SamplingConfig
from blora.decision.by_choice import ChoiceCounts, by_choice
from blora.decision.familiarity import Familiarity
from blora.decision.guesses import modest
from blora.decision.metrics import Metrics, metrics
from blora.decision.temperature import temper
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.draws import Draws
from blora.scores import mutual_information, predictive_mean
from blora.training.progress import rows_bar
from blora.training.rows.packed import LabelledRow, labels_of

__all__ = [
    "Evaluation",
    "batch_tokens",
    "evaluate_nested",
    "predict_all",
    "predict_with_distances",
    "score_packed",
]

# Most padded tokens per forward pass: on a CPU small batches of equal lengths are faster than large padded ones.
CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 512, 16384


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Metrics of the predictive mean over the first n_samples draws, and the seconds spent on scoring.

    Attributes:
        n_samples: number of draws.
        metrics: metrics of all answers.
        mean_confidence: mean probability of the answers.
        mean_mutual_information: mean over the questions, in nats.
        seconds: time of the scoring.
        choices: counts of each choice, of which no question is withheld; empty if they have different choices.
    """

    n_samples: int
    metrics: Metrics
    mean_confidence: float
    mean_mutual_information: float
    seconds: float
    choices: tuple[ChoiceCounts, ...] = ()


def evaluate_nested(
    model: PreTrainedModel,
    rows: Sequence[LabelledRow],
    draws: Draws | HeadDraws | None,
    n_samples: Sequence[int],
    sampling: SamplingConfig | None = None,
    familiarity: Familiarity | None = None,
    choices: Sequence[str] = (),
) -> Iterator[Evaluation]:
    """Yield the metrics over the first n draws for each n, in rising order; every draw is computed once.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        rows: the labelled rows.
        draws: the draws, or None for the base model.
        n_samples: the numbers of draws.
        sampling: the recalibration to apply, None for none.
        familiarity: the familiarity of a head's adapter, for the guesses in its answers; None without one.
        choices: the choices that all rows have, to be counted one by one; none if they have different ones.
    """
    labels, sampling = labels_of(rows), sampling or SamplingConfig()
    seconds = 0.0
    parts: list[Tensor] = []
    if isinstance(draws, HeadDraws):  # all draws share one pass
        began = time.perf_counter()
        log_probs, distances = predict_with_distances(
            model, rows, draws.first(max(n_samples)), familiarity, about="evaluating"
        )
        guesses = familiarity.guesses(distances) if familiarity is not None and distances is not None else None
        seconds = time.perf_counter() - began
        for n in sorted(set(n_samples)):
            yield _summarize(log_probs[:n], labels, sampling, choices, seconds, guesses)
        return
    for start, stop in pairwise([0, *sorted(set(n_samples))]):
        began = time.perf_counter()
        part = draws.part(start, stop) if draws is not None else None
        parts.append(predict_all(model, rows, part, about="evaluating"))
        seconds += time.perf_counter() - began
        yield _summarize(torch.cat(parts), labels, sampling, choices, seconds)


def predict_all(
    model: PreTrainedModel,
    rows: Sequence[LabelledRow],
    draws: Draws | HeadDraws | None,
    *,
    about: str = "scoring",
    read: Callable[[Sequence[int], Features], object] = lambda places, features: None,
) -> Tensor:
    """Return the log-probabilities (S, N, C) of the choices under every draw, -inf beyond a row's last choice.

    Args:
        model: a causal language model whose adapted modules are `LoraLinear`.
        rows: N labelled rows.
        draws: S draws, or None for the base model.
        about: label of the progress bar.
        read: called with the places of rows and the features that a head reads of them.
    """
    return score_packed(model, [row.row for row in rows], draws, about=about, read=read)


def predict_with_distances(
    model: PreTrainedModel,
    rows: Sequence[LabelledRow],
    draws: Draws | HeadDraws,
    familiarity: Familiarity | None,
    *,
    about: str,
) -> tuple[Tensor, Tensor | None]:
    """Return the log-probabilities (S, N, C) of `predict_all`, and the distances (N,) of the rows.

    Args:
        model: as in `predict_all`.
        rows: N labelled rows.
        draws: S draws.
        familiarity: what measures the distances, on the CPU; None for no distances.
        about: label of the progress bar.
    """
    if familiarity is None:
        return predict_all(model, rows, draws, about=about), None
    measured, distances = familiarity.to(model.device), torch.zeros(len(rows))

    def measure(places: Sequence[int], features: Features) -> None:
        assert features.prompt is not None  # a head reads it
        distances[list(places)] = measured.distance(features.prompt, features.choices()).cpu()

    return predict_all(model, rows, draws, about=about, read=measure), distances


def score_packed(
    model: PreTrainedModel,
    rows: Sequence[PackedRow],
    draws: Draws | HeadDraws | None,
    *,
    about: str,
    read: Callable[[Sequence[int], Features], object] = lambda places, features: None,
) -> Tensor:
    """Return the log-probabilities of rows without labels; see `predict_all`."""
    draws = draws.to(model.device) if draws is not None else None
    with rows_bar(len(rows), about) as bar:
        return score_all(model, rows, draws, max_batch_tokens=batch_tokens(model), done=bar.update, read=read)


def batch_tokens(model: PreTrainedModel) -> int:
    """Return the most padded tokens of a forward pass that a model's device handles fast."""
    return CPU_BATCH_TOKENS if model.device.type == "cpu" else GPU_BATCH_TOKENS


def _summarize(
    log_probs: Tensor,
    labels: Tensor,
    sampling: SamplingConfig,
    choices: Sequence[str],
    seconds: float,
    guesses: Tensor | None = None,
) -> Evaluation:
    probs = temper(log_probs, sampling.temperature, sampling.lapse)
    present = ~log_probs.isneginf().all(0)
    mean = predictive_mean(probs if guesses is None else modest(probs, guesses, present))
    return Evaluation(
        n_samples=len(probs),
        metrics=metrics(mean, labels),
        mean_confidence=mean.max(-1).values.mean().item(),
        mean_mutual_information=mutual_information(probs).mean().item(),
        seconds=seconds,
        choices=by_choice(choices, mean.argmax(-1), labels, torch.ones_like(labels, dtype=torch.bool)),
    )
