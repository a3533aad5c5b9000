"""The probabilities of a set's test rows and foreign rows: without guesses, with a temperature, and as served."""

from typing import Any

from torch import Tensor

from benchmarks.elsewhere.modesty import WAYS, density_aware, temperatures
from benchmarks.elsewhere.sets import Elsewhere
from benchmarks.peers.reading import ReadSet, Rows
from blora.decision.guesses import BUDGET, SHARE, modest
from blora.decision.metrics import metrics
from blora.decision.temperature import temper
from blora.posterior.decision_head import HeadDraws
from blora.training.head.train import TrainedHead
from blora.training.rows.packed import labels_of

__all__ = ["probabilities"]


class Modest:
    """The probabilities of a trained head, as served and in modest forms.

    Args:
        rows: the rows of a set.
        trained: the head that was trained on them.
        draws: draws of the head.
    """

    def __init__(self, rows: ReadSet, trained: TrainedHead, draws: HeadDraws) -> None:
        self._trained, self._draws = trained, draws
        validation = rows.validation
        self._fitted = density_aware(
            validation.under(draws), self._distance(validation), labels_of(validation.rows), trained.served.lapse
        )

    def of(self, part: Rows) -> dict[str, Tensor]:
        """Return the predictive means (N, C) of rows by name of the form, one of `WAYS`."""
        log_probs, distances, lapse = part.under(self._draws), self._distance(part), self._trained.served.lapse
        probs = temper(log_probs, self._trained.served.temperature, lapse)
        aware = temper(log_probs, temperatures(distances, *self._fitted), lapse)
        forms = probs, aware, modest(probs, self._trained.familiarity.guesses(distances), ~log_probs.isneginf().all(0))
        return {name: form.mean(0) for name, form in zip(WAYS, forms, strict=True)}

    def _distance(self, part: Rows) -> Tensor:
        return part.distances(self._trained.familiarity)


def probabilities(elsewhere: Elsewhere, rows: ReadSet, trained: TrainedHead, draws: HeadDraws) -> dict[str, Any]:
    """Return the sizes of a set, and the figures of every form of the probabilities of its test and foreign rows.

    Args:
        elsewhere: the set.
        rows: its rows as read.
        trained: the head that was trained on them.
        draws: draws of the head.
    """
    assert rows.foreign is not None  # every set has foreign rows
    modest = Modest(rows, trained, draws)
    of_test, of_foreign = modest.of(rows.test), modest.of(rows.foreign)
    labels = labels_of(rows.foreign.rows)
    return {
        "set": elsewhere.task.name,
        "n_train": len(rows.train.rows),
        "n_validation": len(rows.validation.rows),
        "n_test": len(rows.test.rows),
        "n_reference": trained.familiarity.config.n_reference,
        "share_of_guesses": SHARE,
        "n_draws": draws.n_samples,
        "budget": BUDGET,
        "test": _figures(of_test, labels_of(rows.test.rows), slice(None), labelled=True),
        "foreign": {
            name: {
                "n": elsewhere.sizes[name],
                "ways": _figures(of_foreign, labels, place, labelled=elsewhere.labelled),
            }
            for name, place in elsewhere.places.items()
        },
    }


def _figures(ways: dict[str, Tensor], labels: Tensor, place: slice, *, labelled: bool) -> dict[str, dict[str, float]]:
    """Return the mean confidence under each form, and NLL, ECE and accuracy where rows have a right answer."""
    found = {}
    for name, every in ways.items():
        mean = every[place]
        found[name] = {"confidence": mean.amax(-1).mean().item()}
        if labelled:
            scores = metrics(mean, labels[place])
            found[name] |= {"accuracy": scores.accuracy, "nll": scores.nll, "ece": scores.ece}
    return found
