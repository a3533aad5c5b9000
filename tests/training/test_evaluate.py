import pytest
import torch

from blora.config import PosteriorConfig
from blora.decision.metrics import metrics
from blora.inference.packing import PackedRow
from blora.posterior.bank import SampleBank
from blora.posterior.posterior import Posterior
from blora.training import evaluate as module
from blora.training.evaluate import evaluate_nested, predict_all
from blora.training.rows.packed import LabelledRow
from tests.scenarios import choices_alone, injected, merged, random_draws, random_rows, tiny_model
from tests.training.toys import evaluate


def rows(n_rows: int = 9) -> list[LabelledRow]:
    return [LabelledRow(row, index % 2) for index, row in enumerate(random_rows(n_rows))]


def test_nested_counts_equal_separate_evaluations_with_banks_of_that_size() -> None:
    model, modules = injected()
    posterior = Posterior(modules, PosteriorConfig(rank=2, inducing_rows=3, inducing_cols=3, prior_std=1.0), 0)
    bank = SampleBank.draw(posterior, "digest", 8, seed=4)
    nested = list(evaluate_nested(model, rows(), bank.draws, [8, 1, 3, 3]))
    assert [result.n_samples for result in nested] == [1, 3, 8]
    for result in nested:
        alone = evaluate(model, rows(), SampleBank.draw(posterior, "digest", result.n_samples, seed=4).draws)
        assert alone.n_samples == result.n_samples
        for name, value in alone.metrics.to_dict().items():
            assert result.metrics.to_dict()[name] == pytest.approx(value, abs=1e-5), name
        assert result.mean_confidence == pytest.approx(alone.mean_confidence, abs=1e-5)
        assert result.mean_mutual_information == pytest.approx(alone.mean_mutual_information, abs=1e-5)


def test_seconds_accumulate_over_the_counts() -> None:
    model, modules = injected()
    seconds = [r.seconds for r in evaluate_nested(model, rows(), random_draws(modules, 4), [1, 2, 4])]
    assert 0 < seconds[0] < seconds[1] < seconds[2]


def test_the_base_model_is_evaluated_without_draws() -> None:
    model, _ = injected()
    result = evaluate(model, rows(), None)
    assert result.n_samples == 1
    assert result.mean_mutual_information == pytest.approx(0, abs=1e-12)
    probs = torch.zeros(len(rows()), 4, dtype=torch.float64)
    for index, row in enumerate(rows()):
        alone = choices_alone(tiny_model(), row.row).exp()
        probs[index, : len(alone)] = alone
    expected = metrics(probs, torch.tensor([row.label for row in rows()])).to_dict()
    for name, value in result.metrics.to_dict().items():
        assert value == pytest.approx(expected[name], abs=1e-4), name


def test_probabilities_are_those_of_each_draw_alone() -> None:
    model, modules = injected()
    draws = random_draws(modules, 3)
    probs = predict_all(model, rows(), draws).double().exp()
    assert probs.shape == (3, 9, 4)
    for s in range(3):
        copied = merged(tiny_model(), draws, s)
        for index, row in enumerate(rows()):
            alone = choices_alone(copied, row.row).exp().double()
            torch.testing.assert_close(probs[s, index, : len(alone)], alone, rtol=1e-3, atol=1e-5)
            assert probs[s, index, len(alone) :].sum() == 0


def test_the_predictive_mean_is_of_probabilities() -> None:
    model, modules = injected()
    draws = random_draws(modules, 3)
    mean = predict_all(model, rows(), draws).double().exp().mean(0)
    result = evaluate(model, rows(), draws)
    labels = torch.tensor([row.label for row in rows()])
    nll = -mean.gather(1, labels[:, None]).log().mean().item()
    assert result.metrics.to_dict()["nll"] == pytest.approx(nll)
    assert result.mean_confidence == pytest.approx(mean.max(-1).values.mean().item())
    assert result.mean_mutual_information > 0


def test_the_size_of_a_forward_pass_changes_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    model, modules = injected()
    draws = random_draws(modules, 3)
    at_once = predict_all(model, rows(), draws)
    monkeypatch.setattr(module, "CPU_BATCH_TOKENS", 1)
    torch.testing.assert_close(predict_all(model, rows(), draws), at_once, rtol=1e-3, atol=1e-5)


def test_evaluation_leaves_no_graph() -> None:
    model, modules = injected()
    posterior = Posterior(modules, PosteriorConfig(rank=2, inducing_rows=3, inducing_cols=3), 0)
    draws = posterior.sample(2, torch.Generator())
    assert next(iter(draws.factors.values())).A.requires_grad
    assert not predict_all(model, rows(), draws).requires_grad


def test_a_row_that_is_certain_and_wrong_has_a_finite_nll() -> None:
    model, modules = injected()
    certain = LabelledRow(PackedRow((3, 4), ((5,), (6,)), "none"), 0)
    draws = random_draws(modules, 1, scaling=200.0)
    assert evaluate(model, [certain], draws).metrics.to_dict()["nll"] < float("inf")
