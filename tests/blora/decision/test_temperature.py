"""Recalibration: one temperature, what length does to it, and the share of guesses."""

import math

import pytest
import torch
from torch import Tensor

from blora.config import MOST_TEMPERATURE, SamplingConfig
from blora.decision import temperature
from blora.decision.metrics import ece, nll
from blora.decision.temperature import MOST_LAPSE, Recalibration, fit_recalibration, fit_temperature, temper
from blora.errors import NumericalError, ShapeError

ABSENT = -math.inf
POWERS = (-1.0, 1.0)


def overconfident(n_draws: int = 1, n: int = 4000, temperature: float = 3.0) -> tuple[Tensor, Tensor]:
    """Labels drawn from a model's own probabilities, and that model's log-probabilities sharpened."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(n, 4, generator=generator, dtype=torch.float64)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    noise = 0.1 * torch.randn(n_draws, n, 4, generator=generator, dtype=torch.float64) if n_draws > 1 else 0
    return (temperature * (logits + noise)).log_softmax(-1).view(n_draws, n, 4), labels


@pytest.mark.parametrize("temperature", [0.2, 1.0, 3.0, 10.0])
def test_the_temperature_that_was_put_in_is_found(temperature: float) -> None:
    log_probs, labels = overconfident(temperature=temperature)
    found = fit_temperature(log_probs, labels)
    assert found == pytest.approx(temperature, rel=0.05)
    assert ece(temper(log_probs, found).mean(0), labels) < 0.02


def test_the_fitted_temperature_is_a_minimum_under_several_draws() -> None:
    log_probs, labels = overconfident(n_draws=8)
    found = fit_temperature(log_probs, labels)
    at = {factor: nll(temper(log_probs, factor * found).mean(0), labels) for factor in (0.5, 0.98, 1.0, 1.02, 2.0)}
    assert min(at.values()) == pytest.approx(at[1.0], abs=1e-6)
    assert at[0.5] > at[1.0] < at[2.0]


def test_a_few_rows_that_are_all_right_or_all_wrong_do_not_make_answers_certain_or_void() -> None:
    sure = torch.tensor([[[0.9, 0.1], [0.9, 0.1]]]).log()
    assert 0.3 < fit_temperature(sure, torch.tensor([0, 0])) < 1
    assert 1 < fit_temperature(sure, torch.tensor([1, 1])) < 8
    many = sure.repeat(1, 5000, 1)
    assert fit_temperature(many, torch.zeros(10_000)) < 0.3  # enough of them may


@pytest.mark.parametrize(("label", "p", "bound"), [(0, 0.5001, 1 / MOST_TEMPERATURE), (1, 1 - 1e-9, MOST_TEMPERATURE)])
def test_rows_that_want_more_than_the_largest_change_get_it(label: int, p: float, bound: float) -> None:
    rows = torch.tensor([p, 1 - p], dtype=torch.float64).log().repeat(1, 10_000, 1)
    assert fit_temperature(rows, torch.full((10_000,), label)) == pytest.approx(bound, rel=1e-4)


def test_tempering_keeps_absent_choices_absent_and_one_changes_nothing() -> None:
    log_probs = torch.tensor([[0.7, 0.3, 0.0]]).log()
    assert temper(log_probs, 5.0)[0, 2] == 0
    torch.testing.assert_close(temper(log_probs, 1.0), log_probs.double().exp(), rtol=1e-6, atol=0)
    assert temper(log_probs, 2.0)[0, 0] == pytest.approx(math.sqrt(0.7) / (math.sqrt(0.7) + math.sqrt(0.3)))


@pytest.mark.parametrize(
    ("at", "row", "message"),
    [
        (1, [math.nan, -0.7, ABSENT], r"NaN or \+inf in 1 of 50 rows, row 7 the first"),
        (1, [math.nan] * 3, r"NaN or \+inf in 1 of 50 rows"),
        (1, [math.inf, -0.7, ABSENT], r"NaN or \+inf"),
        (1, [ABSENT] * 3, "no choice with a probability in 1 of 50 rows"),
        (slice(None), [ABSENT, 0.0, ABSENT], "a label on an absent choice in 1 of 50 rows"),
    ],
)
def test_no_temperature_is_fitted_to_log_probabilities_that_are_not_numbers(
    at: int | slice, row: list[float], message: str
) -> None:
    log_probs = torch.tensor([0.7, 0.3, 0.0]).log().repeat(2, 50, 1)
    labels = torch.tensor([0, 0, 0, 1, 0] * 10)
    assert 0.5 < fit_temperature(log_probs, labels) < 1.5  # the third choice is absent, which is no fault
    log_probs[at, 7] = torch.tensor(row)
    with pytest.raises(NumericalError, match=message):
        fit_temperature(log_probs, labels)


def test_a_temperature_is_fitted_to_questions_of_different_numbers_of_choices_as_without_padding() -> None:
    log_probs, labels = overconfident(n_draws=2, n=200)
    padded = torch.cat([log_probs, torch.full((2, 200, 3), ABSENT)], -1)
    assert fit_temperature(padded, labels) == pytest.approx(fit_temperature(log_probs, labels), rel=1e-9)


@pytest.mark.parametrize(
    ("log_probs", "labels"), [((4, 2), (4,)), ((0, 4, 2), (4,)), ((3, 4, 2), (3,)), ((3, 0, 2), (0,))]
)
def test_a_temperature_needs_draws_of_every_row(log_probs: tuple[int, ...], labels: tuple[int, ...]) -> None:
    with pytest.raises(ShapeError, match=r"expected \(S, B, C\) and \(B,\)"):
        fit_temperature(torch.zeros(log_probs), torch.zeros(labels, dtype=torch.long))


# All three numbers


def distorted(put_in: Recalibration, n_draws: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Log-probabilities that this recalibration mends, labels and lengths."""
    generator = torch.Generator().manual_seed(1)
    log_probs, labels = overconfident(n_draws, temperature=1.0)
    n = len(labels)
    lengths = 1 + 20 * torch.rand(n, generator=generator, dtype=torch.float64)
    lapsed = torch.rand(n, generator=generator) < put_in.lapse
    labels = torch.where(lapsed, torch.randint(4, (n,), generator=generator), labels)
    scale = put_in.temperature * lengths**put_in.power
    return (log_probs * scale[:, None]).log_softmax(-1), labels, lengths


@pytest.mark.parametrize(
    "put_in",
    [
        Recalibration(),
        Recalibration(2.0, -0.5, 0.0),
        Recalibration(0.5, 0.8, 0.0),
        Recalibration(1.0, 0.0, 0.2),
        Recalibration(3.0, -0.3, 0.1),
    ],
)
def test_what_was_put_in_is_found(put_in: Recalibration) -> None:
    log_probs, labels, lengths = distorted(put_in, n_draws=4)
    found = fit_recalibration(log_probs, labels, lengths, POWERS)
    assert found.power == pytest.approx(put_in.power, abs=0.08)
    assert found.lapse == pytest.approx(put_in.lapse, abs=0.03)
    middle = lengths.log().mean().exp()
    at_the_middle = [r.temperature * middle**r.power for r in (found, put_in)]
    assert float(at_the_middle[0] / at_the_middle[1]) == pytest.approx(1, abs=0.08)
    assert ece(found.of(log_probs, lengths).mean(0), labels) < 0.03


@pytest.mark.parametrize("put_in", [Recalibration(0.5, 0.8, 0.0), Recalibration(3.0, -0.3, 0.1)])
def test_a_search_that_begins_with_some_rows_ends_where_that_of_all_rows_does(
    put_in: Recalibration, monkeypatch: pytest.MonkeyPatch
) -> None:
    log_probs, labels, lengths = distorted(put_in, n_draws=4)
    of_all = fit_recalibration(log_probs, labels, lengths, POWERS)
    monkeypatch.setattr(temperature, "MOST_SEARCHED", log_probs.numel() // 10)
    assert fit_recalibration(log_probs, labels, lengths, POWERS) == pytest.approx(of_all, abs=2e-3)


@pytest.mark.parametrize("n_pieces", [1, 7])
def test_it_is_a_minimum_and_better_than_one_temperature(n_pieces: int, monkeypatch: pytest.MonkeyPatch) -> None:
    log_probs, labels, lengths = distorted(Recalibration(2.0, -0.4, 0.1), n_draws=3)
    monkeypatch.setattr(temperature, "MOST_SEARCHED", log_probs.numel() // n_pieces)
    found = fit_recalibration(log_probs, labels, lengths, POWERS)

    def loss(recalibration: Recalibration) -> float:
        return nll(recalibration.of(log_probs, lengths).mean(0), labels)

    for factor in (0.95, 1.05):
        for moved in (
            found._replace(temperature=factor * found.temperature),
            found._replace(power=factor * found.power),
            found._replace(lapse=factor * found.lapse),
        ):
            assert loss(moved) > loss(found) - 1e-5
    assert loss(found) < nll(temper(log_probs, fit_temperature(log_probs, labels)).mean(0), labels) - 0.01


def test_a_temperature_a_question_is_that_of_each_alone() -> None:
    log_probs = torch.randn(2, 3, 4, generator=torch.Generator().manual_seed(0)).log_softmax(-1)
    together = temper(log_probs, torch.tensor([0.5, 1.0, 3.0]), 0.1)
    alone = torch.stack([temper(log_probs[:, k], t, 0.1) for k, t in enumerate((0.5, 1.0, 3.0))], 1)
    torch.testing.assert_close(together, alone)


def test_a_lapse_is_a_guess_among_the_choices_that_there_are() -> None:
    log_probs = torch.tensor([[[0.7, 0.3, 0.0], [0.2, 0.2, 0.6]], [[1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]]).log()
    found = temper(log_probs, 1.0, 0.3)
    assert found.sum(-1) == pytest.approx(torch.ones(2, 2))
    assert found[0, 0].tolist() == pytest.approx([0.7 * 0.7 + 0.15, 0.7 * 0.3 + 0.15, 0])
    assert found[1, 0].tolist() == pytest.approx([0.85, 0.15, 0])  # the first draw knows of a second choice
    assert found[1, 1].tolist() == pytest.approx([0.45, 0.45, 0.1])
    alone = temper(log_probs[:, :1], 1.0, 0.3, present=torch.ones(3))  # the question has the third choice too
    assert alone[1, 0].tolist() == pytest.approx([0.8, 0.1, 0.1])


def test_a_choice_that_some_draws_rule_out_is_fitted_as_one_of_tiny_probability() -> None:
    log_probs, labels, lengths = (rows.clone() for rows in distorted(Recalibration(1.0, 0.0, 0.2), n_draws=2))
    log_probs, labels, lengths = log_probs[:, :300], labels[:300], lengths[:300]
    found = []
    for ruled_out in (ABSENT, -1e6):
        log_probs[0, torch.arange(0, 300, 2), labels[::2]] = ruled_out
        found.append(fit_recalibration(log_probs.log_softmax(-1), labels, lengths, POWERS))
    assert found[0] == pytest.approx(found[1], rel=1e-3, abs=1e-6)


def test_a_right_choice_of_a_probability_too_small_for_a_float_does_not_stop_the_fit() -> None:
    log_probs, labels, lengths = (rows.clone() for rows in distorted(Recalibration()))
    log_probs, labels, lengths = log_probs[:, :300], labels[:300], lengths[:300]
    log_probs[0, 0, labels[0]] = -800  # whose exponential is 0
    found = fit_recalibration(log_probs.log_softmax(-1), labels, lengths, POWERS)
    assert 0.8 < found.temperature < 1.3
    assert 0 < found.lapse < 0.05


def test_choices_of_one_length_leave_the_power() -> None:
    log_probs, labels = overconfident()
    found = fit_recalibration(log_probs, labels, torch.full(labels.shape, 5.0), POWERS)
    assert found.power == 0
    assert found.temperature == pytest.approx(fit_temperature(log_probs, labels), rel=0.05)
    assert found.lapse < 0.02


def test_all_three_stay_within_their_bounds() -> None:
    log_probs, labels, lengths = distorted(Recalibration(2.0, -0.5, 0.0))
    assert fit_recalibration(log_probs, labels, lengths, (-0.2, 1.0)).power == pytest.approx(-0.2)
    wrong = log_probs.mean(0).argmin(-1)
    found = fit_recalibration(200 * log_probs, wrong, 40 * lengths, POWERS)
    assert SamplingConfig(temperature=found.temperature, lapse=found.lapse)  # an adapter can hold it
    assert 0 <= found.lapse <= MOST_LAPSE
    assert all(math.isfinite(number) for number in found)


def test_a_handful_of_rows_changes_little() -> None:
    log_probs, labels, lengths = distorted(Recalibration(2.0, -0.5, 0.0))
    found = fit_recalibration(log_probs[:, :3], labels[:3], lengths[:3], POWERS)
    assert abs(found.power) < 0.9
    assert found.lapse < 0.35


def test_draws_of_different_numbers_of_choices_are_recalibrated_as_without_padding() -> None:
    log_probs, labels, lengths = distorted(Recalibration(2.0, -0.4, 0.1), n_draws=2)
    log_probs, labels, lengths = log_probs[:, :300], labels[:300], lengths[:300]
    padded = torch.cat([log_probs, torch.full((2, 300, 3), ABSENT)], -1)
    found = fit_recalibration(padded, labels, lengths, POWERS)
    assert found == pytest.approx(fit_recalibration(log_probs, labels, lengths, POWERS), rel=1e-3)


def test_every_row_has_a_length() -> None:
    log_probs, labels = overconfident()
    with pytest.raises(ShapeError, match=r"lengths \(3,\), expected \(4000,\)"):
        fit_recalibration(log_probs, labels, torch.ones(3), POWERS)
