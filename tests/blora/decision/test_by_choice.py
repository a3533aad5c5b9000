"""Results by choice: what holds for all answers may fail for a rare choice, and a calibration can promise that it holds."""

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from blora.decision.by_choice import ALPHA, ChoiceCounts, beyond, by_choice, table
from blora.decision.calibrate import calibrate
from blora.decision.calibration import Calibration, Goal
from blora.decision.selective import Evidence, Stage, certify, split_rows
from blora.errors import ConfigError
from tests.blora.decision.test_calibrate import BINDING, SOURCE
from tests.blora.decision.test_selective import N_SETS, exceedances_allowed

CHOICES = ("harmless", "harmful")
PLAIN = dataclasses.replace(BINDING, dtype="float32", n_samples=1, temperature=1.0, lapse=0.0)


def counted(choice: str = "some", *, rows: int = 0, missed: int = 0, answers: int = 0, wrong: int = 0) -> ChoiceCounts:
    return ChoiceCounts(choice=choice, n_rows=rows, n_missed=missed, n_answers=answers, n_wrong=wrong)


def test_each_choice_has_its_questions_and_its_answers() -> None:
    top = torch.tensor([0, 0, 1, 2, 1, 0])
    labels = torch.tensor([0, 1, 1, 1, 0, 1])
    answered = torch.tensor([True, True, True, True, True, False])
    assert by_choice("abcd", top, labels, answered) == (
        counted("a", rows=2, missed=1, answers=2, wrong=1),
        counted("b", rows=4, missed=2, answers=2, wrong=1),
        counted("c", answers=1, wrong=1),
        counted("d"),
    )
    assert by_choice((), top, labels, answered) == ()


def test_counts_that_cannot_be_are_refused() -> None:
    for impossible in ({"rows": 1, "missed": 2}, {"answers": 1, "wrong": 2}):
        with pytest.raises(ConfigError, match=r"expected no more missed than there are questions"):
            counted(**impossible)


def test_a_choice_that_evidently_does_worse_than_a_target_is_found() -> None:
    rare = counted("rare", rows=24, missed=24)
    mistaken = counted("mistaken", rows=500, answers=30, wrong=9)
    fine = counted("fine", rows=500, missed=20, answers=500, wrong=30)
    few = counted("few", rows=2, missed=1, answers=2, wrong=1)
    assert beyond([rare, mistaken, fine, few], 0.05) == ([mistaken], [rare])
    assert beyond([rare, mistaken, fine, few], 0.4) == ([], [rare])
    assert beyond([], 0.05) == ([], [])


def test_choices_that_do_as_a_target_says_are_seldom_called_worse() -> None:
    generator, n = torch.Generator().manual_seed(0), 400
    called = 0
    for _ in range(n):
        wrong = torch.binomial(torch.full((2, 5), 100.0), torch.full((2, 5), 0.1), generator=generator).long().tolist()
        found = [counted(rows=100, answers=100, missed=m, wrong=w) for m, w in zip(*wrong, strict=True)]
        called += any(beyond(found, 0.1))
    assert called / n <= ALPHA


def test_a_table_shows_each_choice_and_of_many_those_with_the_most_mistakes() -> None:
    few = [counted("a", rows=3, missed=1, answers=2, wrong=0), counted("line\nbreak"), counted("x" * 99)]
    head, first, broken, long = table(few).splitlines()
    assert head.split() == ["choice", "rows", "missed", "answers", "wrong"]
    assert first.split() == ["a", "3", "1", "2", "0"]
    assert broken.split()[0] == "'line\\nbreak'"
    assert long.split()[0] == "x" * 37 + "..."
    assert len({len(line) for line in (head, first, broken, long)}) == 1
    many = [counted(f"choice {k}", rows=100, missed=k // 2, answers=100, wrong=k - k // 2) for k in range(30)]
    shown = table(many).splitlines()
    assert [line.split()[1] for line in shown[1:-1]] == [str(k) for k in range(29, 9, -1)]
    assert shown[-1].strip() == "the 20 of 30 choices with the most mistakes"


# A calibration whose rows are mostly of one choice


def harmful(n: int, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (1, N, 2) and labels: one question in ten is harmful, the confidence is u of [0.5, 1].

    A harmless question is always seen as such. A harmful one is seen as harmless with probability 3 (1 - u), at most 1.
    """
    generator = torch.Generator().manual_seed(seed)
    u, kind, coin = torch.rand(3, n, generator=generator, dtype=torch.float64)
    confidence = 0.5 + u / 2
    labels = (kind < 0.1).long()
    top = labels * (coin >= 3 * (1 - confidence)).long()
    probs = torch.stack([1 - confidence, confidence], -1)
    return torch.where((top == 1)[:, None], probs, probs.flip(-1)).log()[None], labels


def made(goal: Goal, n: int = 4000, **more: Any) -> Calibration:
    log_probs, labels = harmful(n)
    return calibrate(log_probs, labels, binding=PLAIN, goal=goal, choices=CHOICES, **more, **SOURCE)


GOAL = Goal(target_risk=0.1, score="confidence")


def test_without_a_limit_a_rare_choice_is_missed_and_counted() -> None:
    calibration = made(GOAL)
    level, (harmless, rare) = calibration.default_level, calibration.choices
    assert level.coverage is not None
    assert level.error is not None
    n_answers = level.coverage * calibration.rows.n_proof
    assert level.coverage > 0.99
    assert (harmless.choice, rare.choice) == CHOICES
    assert harmless.n_rows + rare.n_rows == calibration.rows.n_proof
    assert harmless.n_answers + rare.n_answers == pytest.approx(n_answers)
    assert (
        harmless.n_wrong + rare.n_wrong == harmless.n_missed + rare.n_missed == pytest.approx(level.error * n_answers)
    )
    assert rare.n_missed / rare.n_rows > 0.5
    assert beyond(calibration.choices, 0.1) == ([], [rare])


def test_with_a_limit_hardly_any_question_of_a_rare_choice_is_missed() -> None:
    calibration = made(dataclasses.replace(GOAL, max_missed=0.1))
    level, (harmless, rare) = calibration.default_level, calibration.choices
    assert level.coverage is not None
    assert 0.05 < level.coverage < 0.6
    assert harmless.n_answers + rare.n_answers == round(level.coverage * calibration.rows.n_proof)
    assert rare.n_missed / rare.n_rows < 0.1
    assert calibration.asks[-1].max_missed == 0.1
    for other in calibration.proved():  # holds under every target
        assert other.threshold is not None
        assert other.threshold >= level.threshold if other.target_risk < 0.1 else True


def test_a_limit_holds_behind_a_gate_and_counts_the_withheld_questions() -> None:
    distances = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    calibration = made(dataclasses.replace(GOAL, max_missed=0.1), distances=distances)
    assert calibration.gate is not None
    harmless, rare = calibration.choices
    assert harmless.n_rows + rare.n_rows == calibration.rows.n_proof
    assert rare.n_missed / rare.n_rows < 0.1
    assert harmless.n_answers + rare.n_answers == round((calibration.default_level.coverage or 0) * 3000)


def test_counts_by_choice_leave_out_the_row_at_the_gate_as_the_level_does() -> None:
    log_probs, labels = harmful(4000)
    distances = torch.arange(4000.0)
    common = {"binding": PLAIN, "goal": GOAL, "distances": distances, "choices": CHOICES, **SOURCE}
    gate = calibrate(log_probs, labels, **common).gate
    assert gate is not None
    at_the_gate = int(gate.distance)
    log_probs[:, at_the_gate] = torch.tensor([0.01, 0.99], dtype=torch.float64).log()  # an answer, and a wrong one
    labels[at_the_gate] = 0
    calibration = calibrate(log_probs, labels, **common)
    level = calibration.default_level
    n_answers = (level.coverage or 0) * 3000
    assert calibration.gate == gate
    assert sum(one.n_answers for one in calibration.choices) == pytest.approx(n_answers)
    assert sum(one.n_wrong for one in calibration.choices) == pytest.approx((level.error or 0) * n_answers)


def test_a_limit_needs_the_same_choices_and_enough_rows_of_each() -> None:
    goal = dataclasses.replace(GOAL, max_missed=0.05)
    with pytest.raises(ConfigError, match=r"max_missed = 0.05 for rows with different choices, expected the same in"):
        calibrate(*harmful(4000), binding=PLAIN, goal=goal, **SOURCE)
    asked: list[str] = []
    with pytest.raises(ConfigError, match=r"got \d\d rows of the choice 'harmful' for the proof of .* at least 59 of"):
        made(goal, n=400, earlier=lambda: asked.append("asked") or ())
    assert not asked
    for share in (0.0, 1.1):
        with pytest.raises(ConfigError, match="max_missed"):
            Goal(max_missed=share)


def test_rows_beyond_the_gate_do_not_suffice_for_a_limit_and_are_no_ask() -> None:
    log_probs, labels = harmful(800)
    _, proof = split_rows(800, GOAL.seed)
    labels[:] = 0
    labels[proof[:60]] = 1  # one more than needed, if two of them were not beyond the gate
    distances = torch.rand(800, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distances[proof[:60]] /= 2
    distances[proof[:2]] += 2
    goal = dataclasses.replace(GOAL, max_missed=0.05)
    common = {"binding": PLAIN, "goal": goal, "choices": CHOICES, "earlier": lambda: pytest.fail("this is an ask")}
    with pytest.raises(ConfigError, match=r"got 58 rows of the choice 'harmful' for the proof of .* at least 59 of"):
        calibrate(log_probs, labels, distances=distances, **common, **SOURCE)


def test_a_gate_that_no_row_of_the_tuning_part_passes_is_refused() -> None:
    log_probs, labels = harmful(800)
    tuning, _ = split_rows(800, GOAL.seed)
    distances = torch.rand(800, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    distances[tuning] += 2
    with pytest.raises(ConfigError, match="got no row that passes the gate"):
        calibrate(log_probs, labels, binding=PLAIN, goal=GOAL, distances=distances, **SOURCE)


def test_a_limit_that_rows_do_not_prove_is_named() -> None:
    log_probs, labels = harmful(4000)
    half = (labels == 1) & (torch.arange(4000) % 2 == 0)
    log_probs[:, half] = torch.tensor([0.999, 0.001], dtype=torch.float64).log()  # surely harmless
    goal = dataclasses.replace(GOAL, max_missed=0.1)
    with pytest.raises(
        ConfigError, match="got target_risk 0.1 with max_missed 0.1, which these 4000 rows do not prove"
    ):
        calibrate(log_probs, labels, binding=PLAIN, goal=goal, choices=CHOICES, **SOURCE)


def true_shares(threshold: float) -> tuple[float, float]:
    """Return the shares of wrong answers and of missed harmful questions in the world of `harmful`."""
    answered = 2 * (1 - threshold)
    missed = 0.75 * answered**2 if answered < 2 / 3 else answered - 1 / 3
    return 0.1 * missed / answered, missed


# The limit for harmful questions is exceeded first, or the target.
@pytest.mark.parametrize(("target", "limit"), [(0.5, 0.2), (0.05, 0.4)])
def test_a_true_share_exceeds_its_limit_as_rarely_as_promised(target: float, limit: float) -> None:
    exceeded = proved = 0
    delta = 0.1
    for seed in range(N_SETS):
        log_probs, labels = harmful(1500, seed)
        stage = Stage({"confidence": log_probs[0].exp().amax(-1)}, log_probs[0].argmax(-1) != labels)
        right = torch.nn.functional.one_hot(labels, 2)
        evidence = Evidence.gather([stage], seed=seed, right=right)
        level = certify(evidence, target_risk=target, delta=delta, max_missed=limit)
        if level.threshold is not None:
            proved += 1
            risk, missed = true_shares(level.threshold)
            exceeded += risk > target or missed > limit
    assert exceeded <= exceedances_allowed(delta)
    assert proved > N_SETS / 2
