import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from blora.decision.abstention import decide
from blora.decision.asks import Ask
from blora.decision.calibrate import calibrate
from blora.decision.calibration import Binding, Calibration, FormName, Goal
from blora.decision.conformal import conformal_quantile, nonconformity
from blora.decision.curves import reliability, risk_coverage
from blora.decision.familiarity import p_value
from blora.decision.metrics import ece
from blora.decision.selective import split_rows
from blora.decision.stopping import draws_used
from blora.decision.temperature import temper
from blora.decision.uncertainty import summarize
from blora.errors import ConfigError, DataError, NumericalError, ShapeError
from blora.scores import DRAWN, SCORES, TOLERANCE, ScoreName, predictive_mean, scores_of

DIGEST = "sha256:" + "a" * 64
PLANNED = [name for name in SCORES if name in DRAWN]
BINDING = Binding(
    adapter_digest=DIGEST, dtype="bfloat16", n_samples=5, seed=3, scoring="text", temperature=1.5, lapse=0.02,
    stop_error=None,
)  # fmt: skip
SOURCE: dict[str, Any] = {
    "source": "held_out.jsonl", "digest": "sha256:" + "b" * 64, "split": "test", "forms": ("prompt",)
}  # fmt: skip


def answers(n: int = 800, *, n_draws: int = 5, n_choices: int = 3, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Log-probabilities (S, N, C) that are mostly right, and the less sure the less so; of three choices the last row lacks one."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(n_choices, (n,), generator=generator)
    sharp = 6 * torch.rand(n, 1, generator=generator)
    logits = torch.randn(n, n_choices, generator=generator) + sharp * torch.nn.functional.one_hot(labels, n_choices)
    draws = logits + 0.3 * torch.randn(n_draws, n, n_choices, generator=generator)
    labels[-1] = 0
    draws[:, -1, 2:] = -torch.inf
    return draws.log_softmax(-1), labels


def made(goal: Goal | None = None, binding: Binding = BINDING, **shape: int) -> Calibration:
    log_probs, labels = answers(**shape)
    binding = dataclasses.replace(binding, n_samples=len(log_probs))
    return calibrate(log_probs, labels, binding=binding, goal=goal or Goal(), **SOURCE)


@pytest.mark.parametrize("score", PLANNED)
def test_a_score_that_was_planned_gets_every_threshold(score: ScoreName) -> None:
    calibration = made(Goal(target_risk=0.1, score=score))
    assert {level.score for level in calibration.proved()} == {score}
    assert calibration.asks[-1].score == score


def test_a_single_draw_has_no_mutual_information_to_plan_with() -> None:
    with pytest.raises(ConfigError, match="got score mutual_information with n_samples = 1, expected at least 2 for"):
        made(Goal(target_risk=0.1, score="mutual_information"), n_draws=1)


def test_a_calibration_says_what_it_is_for_and_of() -> None:
    calibration = made(Goal(target_risk=0.07, delta=0.1, coverage=0.85, seed=4))
    assert calibration.binding == BINDING
    rows = calibration.rows
    assert (rows.source, rows.digest, rows.split, rows.forms) == tuple(SOURCE.values())
    assert (rows.fewest_choices, rows.most_choices) == (2, 3)
    assert (rows.n_rows, rows.n_tuning, rows.n_proof, rows.seed) == (800, 200, 600, 4)
    assert [level.target_risk for level in calibration.levels] == [0.01, 0.02, 0.05, 0.07, 0.1, 0.2]
    assert [quantile.coverage for quantile in calibration.quantiles] == [0.8, 0.85, 0.9, 0.95]
    assert (calibration.delta, calibration.target_risk, calibration.coverage) == (0.1, 0.07, 0.85)
    assert calibration.default_level.target_risk == 0.07
    assert calibration.quantile == calibration.quantiles[1].quantile


def test_a_looser_target_answers_more_and_each_keeps_its_own() -> None:
    proved = made().proved()
    assert len(proved) >= 3
    coverages = [level.coverage for level in proved]
    assert coverages == sorted(coverages)  # type: ignore[type-var]
    for level in proved:
        assert level.error is not None
        assert level.error < level.target_risk


def test_a_target_that_is_not_the_default_may_go_unproved() -> None:
    calibration = made(Goal(target_risk=0.2), n=200)
    assert calibration.levels[0].threshold is None
    assert calibration.level(0.01) is None
    assert calibration.level(0.2) == calibration.default_level
    assert calibration.level(0.123) is None


def test_what_is_proved_of_answers_that_stop_early_is_counted_as_they_go_out() -> None:
    log_probs, labels = answers(n_draws=16)
    binding = dataclasses.replace(BINDING, n_samples=16, stop_error=0.5)
    calibration = calibrate(log_probs, labels, binding=binding, goal=Goal(), **SOURCE)
    probs, (_, proof) = temper(log_probs, binding.temperature, binding.lapse), split_rows(len(labels), 0)
    for level in calibration.proved():
        policy = level.policy()
        used = draws_used(probs, policy, 0.5)
        assert 4 <= used.double().mean() < 12
        seen = [summarize(probs[: int(used[row]), row]) for row in range(len(labels))]
        out = [row for row in proof.tolist() if not decide(seen[row], policy).abstained]
        assert level.coverage == len(out) / len(proof)
        assert level.error == sum(seen[row].top != labels[row] for row in out) / len(out)
    # The default level's answers are those of the pictures; prediction sets hold at every look.
    level = calibration.default_level
    taken = [probs[:used, row, None] for row, used in enumerate(draws_used(probs, level.policy(), 0.5).tolist())]
    mean, score = (torch.cat([*map(read, taken)]) for read in (predictive_mean, SCORES[level.score].values))
    right = mean.argmax(-1) == labels
    assert right.sum() != (predictive_mean(probs).argmax(-1) == labels).sum()
    curve = risk_coverage(SCORES[level.score].certainty(score), right)
    assert list(map(list, calibration.curve)) == [pytest.approx(point) for point in curve]
    bins = map(dataclasses.astuple, reliability(mean, labels))
    assert [*map(dataclasses.astuple, calibration.reliability)] == [pytest.approx(one) for one in bins]
    missed = torch.stack([nonconformity(predictive_mean(probs[:look, proof]), labels[proof]) for look in (4, 8, 16)])
    assert calibration.quantile == conformal_quantile(missed.amax(0), 0.9)


def test_the_temperature_is_applied_and_the_threshold_is_in_the_units_of_an_answer() -> None:
    log_probs, labels = answers()
    calibration = made()
    policy = calibration.default_level.policy()
    probs = temper(log_probs, BINDING.temperature, BINDING.lapse)
    _, proof = split_rows(800, 0)
    predictions = [summarize(probs[:, row]) for row in proof.tolist()]
    kept = [not decide(prediction, policy).abstained for prediction in predictions]
    wrong = [p.top != int(labels[row]) for p, row in zip(predictions, proof.tolist(), strict=True)]
    level = calibration.default_level
    assert level.coverage == pytest.approx(sum(kept) / len(kept))
    assert level.error == pytest.approx(sum(w for w, k in zip(wrong, kept, strict=True) if k) / sum(kept))


def test_quantiles_come_from_the_proof_part_alone() -> None:
    log_probs, labels = answers()
    mean = predictive_mean(temper(log_probs, BINDING.temperature, BINDING.lapse))
    _, proof = split_rows(800, 0)
    scores = nonconformity(mean[proof], labels[proof])
    for quantile in made().quantiles:
        assert quantile.quantile == conformal_quantile(scores, quantile.coverage)


def test_a_coverage_that_is_not_the_default_may_have_too_few_rows() -> None:
    calibration = made(Goal(target_risk=0.5, delta=0.5, coverage=0.7), n=12)  # of which 9 prove, enough for 0.9
    assert [quantile.quantile is None for quantile in calibration.quantiles] == [False, False, False, True]


def test_the_pictures_are_of_all_rows() -> None:
    calibration = made()
    log_probs, labels = answers()
    probs = temper(log_probs, BINDING.temperature, BINDING.lapse)
    mean = predictive_mean(probs)
    bins = [row for row in calibration.reliability if row.count]
    gap = sum(row.count * abs((row.accuracy or 0) - (row.confidence or 0)) for row in bins) / 800
    assert gap == pytest.approx(ece(mean, labels))
    assert len(calibration.curve) == 100
    assert calibration.curve[-1] == (1.0, pytest.approx(float((mean.argmax(-1) != labels).double().mean())))


def test_a_single_draw_has_no_mutual_information_to_choose() -> None:
    assert "mutual_information" not in scores_of(torch.rand(1, 5, 2, generator=torch.Generator()))
    assert "mutual_information" in scores_of(torch.rand(2, 5, 2, generator=torch.Generator()))
    assert made(n_draws=1).default_level.score != "mutual_information"


def test_two_choices_are_enough() -> None:
    assert made(n_choices=2).default_level.coverage


EARLIER = tuple(Ask(target_risk=target, delta=0.05, seed=0, dtype="bfloat16") for target in (0.01, 0.02))


@pytest.mark.parametrize(("earlier", "spent"), [((), "0.05"), (EARLIER, "0.15")])
def test_a_target_that_is_not_proved_uses_the_rows_up_and_no_other_is_read_from_them(
    earlier: tuple[Ask, ...], spent: str
) -> None:
    log_probs, labels = answers()
    with pytest.raises(ConfigError, match=r"got target_risk 0.005, which these 800 rows do not prove") as info:
        calibrate(log_probs, labels, binding=BINDING, goal=Goal(target_risk=0.005), earlier=lambda: earlier, **SOURCE)
    told = str(info.value)
    assert f"The rows are used up at delta {spent}: another calibration attempt on them adds its delta to that" in told
    assert "rows that no attempt has used start anew" in told
    assert "one like" not in told


@pytest.mark.parametrize(
    ("cause", "message"),
    [
        ({"n": 77}, "got 77 rows"),
        ({"n_draws": 1, "score": "mutual_information"}, "with n_samples = 1"),
        ({"log_prob": math.nan}, "not finite"),
        ({"distances": torch.zeros(800)}, "share their distances"),
    ],
)
def test_an_error_that_no_label_takes_part_in_is_no_ask(cause: dict[str, Any], message: str) -> None:
    log_probs, labels = answers(cause.get("n", 800), n_draws=cause.get("n_draws", 5))
    log_probs[0, 0, 0] = cause.get("log_prob", log_probs[0, 0, 0])
    goal = Goal(target_risk=0.05, score=cause.get("score"))
    more = SOURCE | {"distances": cause.get("distances"), "earlier": lambda: pytest.fail("this is an ask")}
    binding = dataclasses.replace(BINDING, n_samples=len(log_probs))
    with pytest.raises((ConfigError, NumericalError), match=message):
        calibrate(log_probs, labels, binding=binding, goal=goal, **more)


def test_asks_before_it_add_to_the_delta_that_a_calibration_states_and_change_no_proof() -> None:
    log_probs, labels = answers()
    calibration = calibrate(log_probs, labels, binding=BINDING, goal=Goal(), earlier=lambda: EARLIER, **SOURCE)
    assert (calibration.delta, calibration.asks) == (
        0.15,
        (*EARLIER, Goal(max_false_alarms=1.0).ask_in("bfloat16")),
    )
    assert dataclasses.replace(calibration, delta=0.05, asks=made().asks) == made()


def test_where_every_answer_is_wrong_no_target_is_proved() -> None:
    log_probs, _ = answers()
    wrong = predictive_mean(temper(log_probs, 1.5, 0.02))[:, :2].argmin(-1)  # which every row has
    with pytest.raises(ConfigError, match="these 800 rows do not prove at delta 0.05"):
        calibrate(log_probs, wrong, binding=BINDING, goal=Goal(), **SOURCE)


@pytest.mark.parametrize(
    ("n", "goal", "message"),
    [
        (77, Goal(), "got 77 rows for target_risk 0.05 at delta 0.05, expected at least 78"),
        (1, Goal(target_risk=0.9), "got 1 rows for target_risk 0.9"),
        (24, Goal(target_risk=0.5, coverage=0.95), "got 24 rows for coverage 0.95, expected at least 25"),
    ],
)
def test_too_few_rows_are_told_with_the_number_needed(n: int, goal: Goal, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        made(goal, n=n)


def test_a_probability_that_is_not_finite_is_refused() -> None:
    log_probs, labels = answers()
    log_probs[0, 7] = torch.nan
    with pytest.raises(NumericalError, match="score in float32"):
        calibrate(log_probs, labels, binding=BINDING, goal=Goal(), **SOURCE)


def test_shapes_that_do_not_fit_are_refused() -> None:
    log_probs, labels = answers()
    with pytest.raises(ShapeError, match=r"expected \(S, N, C\) and \(N,\)"):
        calibrate(log_probs, labels[1:], binding=BINDING, goal=Goal(), **SOURCE)


@pytest.mark.parametrize("n_draws", [1, 4, 6])
def test_other_draws_than_the_bindings_are_refused(n_draws: int) -> None:
    log_probs, labels = answers(n_draws=n_draws)
    with pytest.raises(ShapeError, match=f"of {n_draws} draws, expected 5, the binding's n_samples"):
        calibrate(log_probs, labels, binding=BINDING, goal=Goal(), **SOURCE)


@pytest.mark.parametrize(
    ("label", "message"),
    [
        (3, "got label 3 in row 9 .* expected 0 to 2: correct or remove"),
        (-1, "got label -1 in row 9"),
        (2, "got label 2 in row 9 .* a choice of log-probability -inf that the row does not have"),
    ],
)
def test_labels_that_are_no_choice_are_refused_before_any_proof(label: int, message: str) -> None:
    log_probs, labels = answers()
    labels[-1] = label
    with pytest.raises(DataError, match=message):
        calibrate(log_probs[:, -10:], labels[-10:], binding=BINDING, goal=Goal(), **SOURCE)


def test_a_row_without_a_choice_to_make_is_refused() -> None:
    log_probs, labels = answers()
    log_probs[:, 3, :2] = -torch.inf
    with pytest.raises(DataError, match="got 1 choices in row 3 .* expected at least 2"):
        calibrate(log_probs, labels, binding=BINDING, goal=Goal(), **SOURCE)


def test_a_choice_that_some_draws_rule_out_is_a_choice() -> None:
    log_probs, labels = answers()
    log_probs[0, [3, -1], [int(labels[3]), 1]] = -torch.inf
    log_probs[0] = log_probs[0].log_softmax(-1)
    rows = calibrate(log_probs, labels, binding=BINDING, goal=Goal(), **SOURCE).rows
    assert (rows.fewest_choices, rows.most_choices) == (2, 3)


def test_choices_that_no_row_has_change_nothing() -> None:
    log_probs, labels = answers()
    padded = torch.cat([log_probs, torch.full_like(log_probs[:, :, :2], -torch.inf)], -1)
    assert calibrate(padded, labels, binding=BINDING, goal=Goal(), **SOURCE) == made()


def test_forms_are_those_that_were_seen() -> None:
    log_probs, labels = answers()
    forms: list[FormName] = ["prompt", "messages", "prompt"]
    made_of_both = calibrate(log_probs, labels, binding=BINDING, goal=Goal(), **(SOURCE | {"forms": forms}))
    assert made_of_both.rows.forms == ("messages", "prompt")


# Behind a gate


def distances_of(n: int = 800, seed: int = 0) -> Tensor:
    return torch.randn(n, generator=torch.Generator().manual_seed(seed))


def gated(goal: Goal | None = None, **more: Any) -> Calibration:
    log_probs, labels = answers()
    more = {"distances": distances_of(), **more}
    return calibrate(log_probs, labels, binding=BINDING, goal=goal or Goal(), **more, **SOURCE)


def test_rows_beyond_the_gate_do_not_count() -> None:
    log_probs, labels = answers()
    calibration = gated()
    gate, (_, proof) = calibration.gate, split_rows(800, 0)
    assert gate is not None
    assert gate.reference == tuple(distances_of()[proof].double().sort().values.tolist())
    probs = temper(log_probs, BINDING.temperature, BINDING.lapse)
    wrong = predictive_mean(probs).argmax(-1) != labels
    for level in calibration.proved():
        score, threshold = SCORES[level.score], level.threshold
        assert threshold is not None
        out = torch.tensor([not score.fails(value, threshold) for value in score.values(probs).tolist()])
        out = (out & (distances_of() < gate.distance))[proof]
        assert level.coverage == pytest.approx(float(out.double().mean()))
        assert level.error == pytest.approx(float(wrong[proof][out].double().mean()))
    # Whatever the rows beyond the gate are labelled, the levels are the same.
    beyond = distances_of() > gate.distance
    others = torch.where(beyond, predictive_mean(probs)[:, :2].argmin(-1), labels)
    again = calibrate(log_probs, others, binding=BINDING, goal=Goal(), distances=distances_of(), **SOURCE)
    assert again.levels == calibration.levels


def test_another_share_of_false_alarms_is_another_ask() -> None:
    assert Goal(max_false_alarms=0.05).ask_in("float32") != Goal(max_false_alarms=0.2).ask_in("float32")


def test_a_share_of_one_gives_no_gate() -> None:
    assert dataclasses.replace(gated(Goal(max_false_alarms=1)), asks=made().asks) == made()
    assert made().policy(made().default_level) == made().default_level.policy()


def test_a_policy_has_the_gate_that_its_level_was_proved_behind() -> None:
    calibration = gated()
    assert calibration.gate is not None
    for level in calibration.proved():
        expected = level.policy().thresholds() | {"min_familiarity": calibration.gate.min_familiarity}
        policy = calibration.policy(level, "request")
        assert (policy.thresholds(), policy.source) == (expected, "request")


def test_too_few_rows_for_the_gate_are_told_with_the_number_needed() -> None:
    (log_probs, labels), goal = answers(n=78), Goal(max_false_alarms=0.02)
    with pytest.raises(ConfigError, match=r"got 78 rows for max_false_alarms 0\.02 and .*, expected at least 198"):
        calibrate(log_probs, labels, binding=BINDING, goal=goal, distances=distances_of(78), **SOURCE)


@pytest.mark.parametrize("share", [0.0, -0.1, 1.1, math.nan])
def test_a_share_of_false_alarms_is_above_0_and_at_most_1(share: float) -> None:
    with pytest.raises(ConfigError, match="max_false_alarms"):
        Goal(max_false_alarms=share)


def with_unfamiliar_rows(n: int, seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities (1, N, 2), labels and distances; one row of nine is unfamiliar, and nearly always wrong."""
    generator = torch.Generator().manual_seed(seed)
    distances = torch.randn(n, generator=generator)
    confidence = 0.5 + 0.5 * torch.rand(n, generator=generator)
    wrong = torch.where(distances > 1.22, 0.9, 0.6 * (1 - confidence))
    labels = (torch.rand(n, generator=generator) < wrong).long()
    return torch.stack([confidence, 1 - confidence], -1).log()[None], labels, distances


def test_the_risk_of_familiar_answers_exceeds_the_target_with_probability_delta_at_most() -> None:
    binding = dataclasses.replace(BINDING, dtype="float32", n_samples=1, temperature=1.0, lapse=0.0)
    goal = Goal(target_risk=0.15, delta=0.1, max_false_alarms=0.15, score="confidence")
    everyone, labels, distances = with_unfamiliar_rows(50_000, seed=999)
    confidence, wrong = everyone[0].exp().amax(-1), everyone[0].argmax(-1) != labels
    exceeded, alarms, proved = 0, 0, 0
    for seed in range(200):
        rows, own, far = with_unfamiliar_rows(400, seed)
        try:
            calibration = calibrate(rows, own, binding=binding, goal=goal, distances=far, **SOURCE)
        except ConfigError:  # nothing is proved, and so nothing exceeded
            continue
        gate, limits = calibration.gate, calibration.policy(calibration.default_level).limits()
        assert gate is not None
        known = p_value(distances, torch.tensor(gate.reference))
        familiar = known >= limits["familiarity"] - TOLERANCE
        answered = familiar & (confidence >= limits["confidence"] - TOLERANCE)
        exceeded += float(wrong[answered].double().mean()) > goal.target_risk
        alarms += float((~familiar).double().mean()) > goal.max_false_alarms
        proved += 1
    assert proved > 100
    most = 200 * goal.delta + 3 * math.sqrt(200 * goal.delta * (1 - goal.delta))
    assert exceeded <= most
    assert alarms <= most
