import hashlib
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.decision import selective
from blora.decision.abstention import Policy, decide
from blora.decision.binomial import binomial_cdf, clopper_pearson
from blora.decision.selective import (
    Candidates,
    Counts,
    Evidence,
    Level,
    Stage,
    certify,
    rows_for_proof,
    rows_needed,
    split_rows,
)
from blora.errors import ConfigError, ShapeError
from blora.scores import SCORES, ScoreName
from tests.blora.decision.test_abstention import prediction

# Dividing the rows


@pytest.mark.parametrize("n_rows", [4, 5, 7, 8, 101])
def test_a_quarter_tunes_and_the_rest_proves(n_rows: int) -> None:
    tuning, proof = split_rows(n_rows, seed=3)
    assert len(tuning) == n_rows // 4
    assert sorted([*tuning.tolist(), *proof.tolist()]) == list(range(n_rows))
    again, _ = split_rows(n_rows, seed=3)
    assert torch.equal(again, tuning)
    assert rows_for_proof(len(proof)) <= n_rows


def test_the_division_is_written_down_and_knows_every_bit_of_the_seed() -> None:
    def place(row: int) -> str:
        return hashlib.sha256(b"7,%d" % row).hexdigest()

    tuning, proof = split_rows(20, seed=7)
    assert [*tuning.tolist(), *proof.tolist()] == sorted(range(20), key=place)
    orders = {tuple(split_rows(40, seed)[0].tolist()) for seed in (0, 1, 2**32, 2**62)}
    assert len(orders) == 4


def test_each_row_tunes_as_often_as_the_others() -> None:
    n_seeds = 2000
    tuned = torch.zeros(12)
    for seed in range(n_seeds):
        tuned[split_rows(12, seed)[0]] += 1
    assert (tuned / n_seeds - 0.25).abs().max() < 5 * (0.25 * 0.75 / n_seeds) ** 0.5


@pytest.mark.parametrize("n_rows", [0, 1, 3])
def test_too_few_rows_to_divide_are_refused(n_rows: int) -> None:
    with pytest.raises(ConfigError, match=f"got {n_rows} rows, expected at least 4"):
        split_rows(n_rows, seed=0)


@pytest.mark.parametrize(
    ("target", "delta"), [(0.05, 0.05), (0.01, 0.05), (0.2, 0.1), (0.5, 0.5), (0.5, 0.125), (0.001, 0.01)]
)
def test_the_rows_needed_suffice_without_errors_and_one_fewer_does_not(target: float, delta: float) -> None:
    needed = rows_needed(target, delta)
    alike = {"confidence": torch.full((needed,), 0.9)}
    right = torch.zeros(needed, dtype=torch.bool)
    level = certify(Evidence.gather([Stage(alike, right)], seed=0), target_risk=target, delta=delta)
    assert (level.coverage, level.expected_coverage) == (1, 1)
    if needed > 4:
        fewer = {"confidence": alike["confidence"][1:]}
        level = certify(Evidence.gather([Stage(fewer, right[1:])], seed=0), target_risk=target, delta=delta)
        assert level.threshold is None


# The guarantee. A score u is uniform and an answer wrong with a probability that rises with it, so that the true
# selective error below any threshold is known.

N_SETS = 600


def exceedances_allowed(delta: float) -> int:
    """The most of N_SETS that an event of probability delta reaches in all but 1 of 1000 runs of this test."""
    return next(m for m in range(N_SETS) if binomial_cdf(m, N_SETS, delta) >= 0.999)


World = Callable[[torch.Generator, int], tuple[dict[ScoreName, Tensor], Tensor]]


def steep(generator: torch.Generator, n: int) -> tuple[dict[ScoreName, Tensor], Tensor]:
    """P(wrong | u) = 0.9 u^3; the entropy sees u through noise, the information is noise alone."""
    u, noise, coin = torch.rand(3, n, generator=generator, dtype=torch.float64)
    scores: dict[ScoreName, Tensor] = {
        "confidence": 1 - u,
        "predictive_entropy": (u + noise) / 2,
        "mutual_information": noise,
    }
    return scores, coin < 0.9 * u**3


def tied(generator: torch.Generator, n: int) -> tuple[dict[ScoreName, Tensor], Tensor]:
    """Five values of u; P(wrong | u) = u / 3."""
    scores, _ = steep(generator, n)
    u = ((1 - scores["confidence"]) * 5).floor() / 5
    return {"confidence": 1 - u}, torch.rand(n, generator=generator, dtype=torch.float64) < u / 3


def flat(generator: torch.Generator, n: int) -> tuple[dict[ScoreName, Tensor], Tensor]:
    """P(wrong) = 0.104 whatever the score: every proof of 0.1 is a false one."""
    u, coin = torch.rand(2, n, generator=generator, dtype=torch.float64)
    return {"confidence": 1 - u}, coin < 0.104


def true_risk(world: World, level: Level) -> float:
    """By a sample so large that its error does not matter."""
    key = (world, level.score)
    if key not in _LARGE:
        scores, wrong = world(torch.Generator().manual_seed(99), 400_000)
        values = SCORES[level.score].certainty(scores[level.score])
        order = values.argsort(descending=True)
        _LARGE[key] = (-values[order], wrong[order].double().cumsum(0))
    uncertainty, errors = _LARGE[key]
    assert level.threshold is not None
    limit = -level.threshold if SCORES[level.score].high_is_certain else level.threshold
    answered = int(torch.searchsorted(uncertainty, limit + selective.TOLERANCE, right=True))
    return float(errors[answered - 1]) / answered


_LARGE: dict[tuple[World, ScoreName], tuple[Tensor, Tensor]] = {}


@pytest.mark.parametrize(
    ("world", "n", "target", "delta"),
    [(steep, 240, 0.1, 0.05), (steep, 400, 0.2, 0.2), (tied, 300, 0.1, 0.1), (flat, 400, 0.1, 0.1)],
)
def test_the_true_risk_exceeds_the_target_as_rarely_as_promised(
    world: World, n: int, target: float, delta: float
) -> None:
    exceeded = proved = 0
    for seed in range(N_SETS):
        scores, wrong = world(torch.Generator().manual_seed(seed), n)
        level = certify(Evidence.gather([Stage(scores, wrong)], seed=seed), target_risk=target, delta=delta)
        if level.threshold is not None:
            proved += 1
            # 0.002 is three times the error of the large sample.
            exceeded += true_risk(world, level) > target + 0.002
    assert exceeded <= exceedances_allowed(delta)
    if world is not flat:
        assert proved > N_SETS / 2  # a guarantee that never answers would be no achievement


def test_a_score_that_knows_is_chosen_over_one_that_does_not() -> None:
    chosen = []
    for seed in range(20):
        scores, wrong = steep(torch.Generator().manual_seed(seed), 800)
        chosen.append(certify(Evidence.gather([Stage(scores, wrong)], seed=seed), target_risk=0.1, delta=0.05).score)
    assert chosen.count("confidence") > 15
    assert "mutual_information" not in chosen


def test_the_order_is_fixed_before_the_proof_part_is_seen() -> None:
    scores, wrong = steep(torch.Generator().manual_seed(1), 400)
    _, proof = split_rows(400, seed=5)
    before = Evidence.gather([Stage(scores, wrong)], seed=5)
    other = {name: values.clone() for name, values in scores.items()}
    for values in other.values():
        values[proof] = values[proof].flip(0)
    turned = wrong.clone()
    turned[proof] = ~turned[proof]
    after = Evidence.gather([Stage(other, turned)], seed=5)
    for one, another in zip(before.candidates, after.candidates, strict=True):
        assert (one.thresholds, one.tuning) == (another.thresholds, another.tuning)
        assert one.proof != another.proof


# What a level says


def evidence_of(confidence: Tensor, wrong: Tensor, seed: int = 0) -> Evidence:
    return Evidence.gather([Stage({"confidence": confidence}, wrong)], seed=seed)


def test_a_level_counts_what_its_policy_answers() -> None:
    scores, wrong = steep(torch.Generator().manual_seed(4), 1200)
    level = certify(Evidence.gather([Stage(scores, wrong)], seed=9), target_risk=0.1, delta=0.05)
    policy = level.policy("request")
    assert policy.source == "request"
    _, proof = split_rows(1200, seed=9)
    answered = [
        row
        for row in proof.tolist()
        if not decide(prediction(**{name: float(values[row]) for name, values in scores.items()}), policy).abstained
    ]
    assert sorted(answered) == sorted(proof[level.answers(scores[level.score][proof])].tolist())
    errors = int(wrong[answered].sum())
    assert level.coverage == pytest.approx(len(answered) / len(proof))
    assert level.error == pytest.approx(errors / len(answered))
    assert level.upper_bound == pytest.approx(clopper_pearson(errors, len(answered), 0.05))
    assert level.error < level.upper_bound <= 0.1
    assert level.expected_coverage == pytest.approx(level.coverage, abs=0.2)


def test_nan_is_not_answered() -> None:
    confidence = torch.tensor([0.9] * 400)
    level = certify(evidence_of(confidence, confidence < 0), target_risk=0.05, delta=0.05)
    assert level.answers(torch.tensor([math.nan, 0.9])).tolist() == [False, True]
    stage = Stage({"confidence": torch.tensor([math.nan, 0.9])}, torch.tensor([True, False]))
    thresholds = torch.tensor([0.8], dtype=torch.float64)
    right = torch.eye(2, dtype=torch.float64)
    assert selective._count([stage], SCORES["confidence"], torch.arange(2), right, thresholds) == ((1, 0, (0, 0)),)


def test_exactly_at_a_threshold_is_answered() -> None:
    confidence = torch.tensor([0.9, 0.8]).repeat(200)
    wrong = confidence < 0.85
    level = certify(evidence_of(confidence, wrong), target_risk=0.05, delta=0.05)
    _, proof = split_rows(400, seed=0)
    assert level.policy() == Policy(min_confidence=confidence[0].item())
    assert level.coverage == pytest.approx(float((~wrong[proof]).double().mean()))
    assert level.error == 0


def test_where_all_are_right_all_that_the_tuning_part_has_seen_is_answered() -> None:
    confidence = torch.linspace(0.5, 1, 400, dtype=torch.float64)
    level = certify(evidence_of(confidence, torch.zeros(400, dtype=torch.bool)), target_risk=0.02, delta=0.05)
    tuning, proof = split_rows(400, seed=0)
    assert level.threshold == confidence[tuning].min()
    assert level.expected_coverage == 1
    assert level.coverage == pytest.approx(float((confidence[proof] >= confidence[tuning].min()).double().mean()))


def test_where_all_are_wrong_nothing_is_proved() -> None:
    evidence = evidence_of(torch.rand(400, generator=torch.Generator()), torch.ones(400, dtype=torch.bool))
    for target in (0.01, 0.5, 0.99):
        level = certify(evidence, target_risk=target, delta=0.05)
        assert (level.threshold, level.coverage, level.error, level.upper_bound) == (None, None, None, None)
        assert level.expected_coverage == 0
        with pytest.raises(ConfigError, match="expected one that was proved"):
            level.policy()
        assert not level.answers(torch.rand(3, generator=torch.Generator())).any()


def test_equal_scores_are_answered_all_or_none() -> None:
    wrong = torch.arange(400) % 20 == 0  # 5 % of them
    alike = evidence_of(torch.full((400,), 0.7), wrong)
    assert certify(alike, target_risk=0.1, delta=0.05).coverage == 1
    assert certify(alike, target_risk=0.05, delta=0.05).threshold is None


def test_of_equally_good_scores_the_first_is_taken() -> None:
    wrong = torch.zeros(100, dtype=torch.bool)
    values = torch.linspace(0.1, 0.9, 100)
    scores: dict[ScoreName, Tensor] = {"predictive_entropy": values, "confidence": 1 - values}
    assert (
        certify(Evidence.gather([Stage(scores, wrong)], seed=0), target_risk=0.1, delta=0.05).score
        == "predictive_entropy"
    )


def test_where_no_score_promises_a_proof_the_likelier_one_is_taken() -> None:
    wrong = torch.arange(400) % 4 == 0
    scores: dict[ScoreName, Tensor] = {"predictive_entropy": torch.full((400,), 0.5), "confidence": 1 - 0.1 * wrong}
    level = certify(Evidence.gather([Stage(scores, wrong)], seed=0), target_risk=0.001, delta=0.05)
    assert (level.score, level.expected_coverage, level.threshold) == ("confidence", 0, None)


def test_what_is_expected_of_a_choice_is_for_as_many_rows_as_the_proof_part_has() -> None:
    """Of 50 questions of a choice 3 are missed: for 150 questions 9, with which a tenth is not proved, but a seventh is."""
    counts = (Counts(100, 3, (3, 0)), Counts(300, 9, (9, 0)))
    candidates = Candidates("confidence", (0.5,), *((one,) for one in counts))
    evidence = Evidence(100, 300, (candidates,), ((50, 50), (150, 150)))
    assert binomial_cdf(9, 150, 1 / 7) < 0.05 < binomial_cdf(9, 150, 0.1)
    for limit, expected in ((0.1, 0), (1 / 7, 1)):
        level = certify(evidence, target_risk=0.2, delta=0.05, max_missed=limit)
        assert (level.expected_coverage, level.coverage) == (expected, expected or None)


def test_without_a_limit_a_choice_that_is_always_missed_is_no_obstacle() -> None:
    confidence, labels = torch.full((400,), 0.9), (torch.arange(400) % 50 == 0).long()
    stage = Stage({"confidence": confidence}, labels == 1)
    level = certify(
        Evidence.gather([stage], seed=0, right=torch.nn.functional.one_hot(labels)), target_risk=0.1, delta=0.05
    )
    assert level == certify(Evidence.gather([stage], seed=0), target_risk=0.1, delta=0.05)
    assert level.coverage == 1


def test_many_values_become_candidates_evenly() -> None:
    values = torch.rand(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    [candidates] = evidence_of(values, values < 0.1).candidates
    tuning, _ = split_rows(4000, seed=0)
    assert len(candidates.thresholds) == selective.MAX_CANDIDATES
    assert candidates.thresholds[-1] == values[tuning].min()
    assert candidates.tuning[-1].answered == 1000
    steps = [b.answered - a.answered for a, b in zip(candidates.tuning, candidates.tuning[1:], strict=False)]
    assert set(steps) <= {4, 5, 6}


def test_where_an_early_look_withholds_every_row_nothing_is_proved() -> None:
    doubtful, certain, wrong = torch.full((8,), 0.1), torch.full((8,), 0.9), torch.zeros(8, dtype=torch.bool)
    early = Stage({"confidence": doubtful}, wrong, {"confidence": torch.full((8,), 0.01)})
    evidence = Evidence.gather([early, Stage({"confidence": certain}, wrong)], seed=0)
    level = certify(evidence, target_risk=0.5, delta=0.5)
    assert (level.threshold, level.expected_coverage) == (None, 0)


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"expected \(N,\) each"):
        Evidence.gather([Stage({"confidence": torch.rand(5)}, torch.zeros(6, dtype=torch.bool))], seed=0)


GOOD = {
    "target_risk": 0.1,
    "score": "confidence",
    "expected_coverage": 0.5,
    "threshold": 0.8,
    "coverage": 0.4,
    "error": 0.02,
    "upper_bound": 0.09,
}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_risk": 0.0}, "target_risk = 0.0, expected a number between"),
        ({"target_risk": 1.0}, "target_risk = 1.0"),
        ({"threshold": None}, "proved in part"),
        ({"coverage": 1.5}, "coverage = 1.5 for target_risk 0.1, expected 0 to 1"),
        ({"error": -0.1}, "error = -0.1"),
        ({"expected_coverage": float("nan")}, "expected_coverage = nan"),
        ({"upper_bound": 0.11}, "upper_bound = 0.11 .* at most the target"),
        ({"threshold": 1.2}, "min_confidence = 1.2"),
        ({"score": "predictive_entropy", "threshold": -0.1}, "max_predictive_entropy = -0.1"),
    ],
)
def test_a_level_that_cannot_be_is_refused(change: dict[str, object], message: str) -> None:
    Level(**GOOD)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=message):
        Level(**(GOOD | change))  # type: ignore[arg-type]


@given(st.integers(16, 400), st.integers(0, 2**62), st.sampled_from([0.02, 0.1, 0.3]), st.sampled_from([0.02, 0.2]))
def test_whatever_is_certified_is_proved_by_its_counts(n: int, seed: int, target: float, delta: float) -> None:
    scores, wrong = steep(torch.Generator().manual_seed(seed), n)
    evidence = Evidence.gather([Stage(scores, wrong)], seed=seed)
    level = certify(evidence, target_risk=target, delta=delta)
    if level.threshold is None or level.coverage is None or level.error is None:
        return
    answered = round(level.coverage * evidence.n_proof)
    misses = round(level.error * answered)
    assert (level.coverage, level.error) == (answered / evidence.n_proof, misses / answered)
    assert binomial_cdf(misses, answered, target) <= delta
    assert level.upper_bound == clopper_pearson(misses, answered, delta) <= target
    values = scores[level.score]
    assert values.min() <= level.threshold <= values.max()
