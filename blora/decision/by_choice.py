"""Results by choice: what holds for all answers together may fail for a choice, most easily for a rare one.

If 2 % of the questions are harmful, a model that calls nothing harmful is wrong in 2 % of its answers.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Annotated, ClassVar

from pydantic import ConfigDict, Field
from torch import Tensor

from blora.config.checks import require
from blora.decision.binomial import binomial_cdf

__all__ = ["ChoiceCounts", "beyond", "by_choice", "table"]

# The largest probability that any choice is called worse than a target that holds for it.
ALPHA = 0.05
# Most choices in a table, and most characters of each.
SHOWN, WIDTH = 20, 40

Count = Annotated[int, Field(ge=0, le=2**53)]


@dataclass(frozen=True, slots=True, kw_only=True)
class ChoiceCounts:
    """Counts of one choice among labelled questions, some of which may be withheld.

    Attributes:
        choice: the choice.
        n_rows: questions whose right choice it is.
        n_missed: of these, the ones that got another answer.
        n_answers: answers that are this choice.
        n_wrong: of these, the wrong ones.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid", strict=True)

    choice: str
    n_rows: Count
    n_missed: Count
    n_answers: Count
    n_wrong: Count

    def __post_init__(self) -> None:
        require(
            0 <= self.n_missed <= self.n_rows and 0 <= self.n_wrong <= self.n_answers,
            f"{self.n_missed} of {self.n_rows} questions missed and {self.n_wrong} of {self.n_answers} answers wrong "
            f"for {self.choice!r}",
            "no more missed than there are questions, and no more wrong than there are answers",
        )

    def to_dict(self) -> dict[str, str | int]:
        """Return the fields by name, for a result file."""
        return asdict(self)


def by_choice(choices: Sequence[str], top: Tensor, labels: Tensor, answered: Tensor) -> tuple[ChoiceCounts, ...]:
    """Return the counts of each choice.

    Args:
        choices: C choices, the same for every question; none if they have different ones, which are not counted.
        top: (N,) indices of the most probable choices.
        labels: (N,) indices of the right choices.
        answered: (N,) whether a question is answered.
    """
    if not choices:
        return ()
    wrong = answered & (top != labels)

    def counts(among: Tensor) -> list[int]:
        found: list[int] = among.long().bincount(minlength=len(choices)).tolist()
        return found

    columns = map(counts, (labels, labels[wrong], top[answered], top[wrong]))
    return tuple(
        ChoiceCounts(choice=choice, n_rows=n_rows, n_missed=n_missed, n_answers=n_answers, n_wrong=n_wrong)
        for choice, n_rows, n_missed, n_answers, n_wrong in zip(choices, *columns, strict=True)
    )


def beyond(found: Sequence[ChoiceCounts], target_risk: float) -> tuple[list[ChoiceCounts], list[ChoiceCounts]]:
    """Return the choices whose answers, and those whose questions, evidently go wrong more often than a target says.

    The probability that a choice is among either, although the target holds for it, is at most `ALPHA` in all.

    Args:
        found: the counts of each choice.
        target_risk: the largest allowed share of wrong answers.
    """
    level = ALPHA / (2 * max(1, len(found)))

    def evident(n_wrong: int, n: int) -> bool:
        return 1 - binomial_cdf(n_wrong - 1, n, target_risk) <= level

    answers = [one for one in found if evident(one.n_wrong, one.n_answers)]
    questions = [one for one in found if evident(one.n_missed, one.n_rows)]
    return answers, questions


def table(found: Sequence[ChoiceCounts]) -> str:
    """Return the counts as a table with a line for each choice; of many, those with the most mistakes."""
    shown = sorted(found, key=lambda one: -one.n_missed - one.n_wrong)[:SHOWN] if len(found) > SHOWN else found
    width = max(map(len, ("choice", *(_shown(one.choice) for one in shown))))
    lines = [f"  {'choice':<{width}} {'rows':>7} {'missed':>7} {'answers':>8} {'wrong':>7}"]
    for one in shown:
        counts = f"{one.n_rows:>7} {one.n_missed:>7} {one.n_answers:>8} {one.n_wrong:>7}"
        lines.append(f"  {_shown(one.choice):<{width}} {counts}")
    if len(shown) < len(found):
        lines.append(f"  the {SHOWN} of {len(found)} choices with the most mistakes")
    return "\n".join(lines)


def _shown(choice: str) -> str:
    """Return a choice as a table shows it, in one line of bounded length."""
    text = choice if choice.isprintable() else repr(choice)
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 3]}..."
