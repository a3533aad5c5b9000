import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import EarlyStoppingCallback

from blora.base_model import BaseModel
from blora.decision.metrics import metrics
from blora.errors import NumericalError
from blora.posterior.bank import SampleBank
from blora.posterior.posterior import Posterior
from blora.training.config import TrainConfig
from blora.training.evaluate import Evaluation
from blora.training.lora import trainer as module
from blora.training.lora.checkpoints import last_complete
from blora.training.lora.objective import Elbo
from blora.training.lora.sampler import LengthGroupedOrder
from blora.training.lora.trainer import fit
from blora.training.rows.packed import LabelledRow, labels_of
from tests.scenarios import tiny_base, tiny_model
from tests.training.toys import evaluate, labelled, toy_config, toy_data, toy_posterior

FORMS: dict[str, dict[str, Any]] = {
    "lora": {"method": "lora"},
    "diagonal": {"family": "diagonal"},
    "matrix_normal": {"family": "matrix_normal"},
    "flow": {"family": "flow"},
    "top": {"bayesian_layers": (1,)},
}


def run(
    work_dir: Path,
    *,
    n_train: int = 8,
    form: str = "diagonal",
    flipped: bool = False,
    seed: int = 0,
    resume: bool = False,
    **settings: Any,
) -> tuple[Posterior, Evaluation]:
    """A posterior fitted to toy rows, and its evaluation; `flipped` validates on the opposite answers."""
    base = tiny_base()
    posterior = toy_posterior(base, seed=seed, **FORMS[form])
    validation = labelled(base, toy_data(6, seed=1, flipped=flipped))
    config = toy_config(work_dir, seed=seed, **settings)
    fit(
        base,
        posterior,
        labelled(base, toy_data(n_train)),
        validation,
        config,
        last_complete(work_dir) if resume and work_dir.is_dir() else None,
    )
    return posterior, evaluated(base, posterior, validation, config)


def evaluated(base: BaseModel, posterior: Posterior, validation: list[LabelledRow], config: TrainConfig) -> Evaluation:
    """Return the evaluation of a posterior on validation rows, with the draws that the trainer uses."""
    n_samples = 1 if posterior.config.method == "lora" else config.validation_draws
    return evaluate(base.model, validation, SampleBank.draw(posterior, "digest", n_samples, config.seed).draws)


def states(work_dir: Path) -> dict[int, dict[str, Any]]:
    """Return the Trainer's state in each checkpoint, by step."""
    return {
        int(folder.name.removeprefix("checkpoint-")): json.loads((folder / "trainer_state.json").read_text())
        for folder in work_dir.glob("checkpoint-*")
    }


def last_log(work_dir: Path) -> list[dict[str, float]]:
    found = states(work_dir)
    return found[max(found)]["log_history"]


def assert_same(got: Posterior, expected: Posterior) -> None:
    for name, tensor in expected.state_dict().items():
        torch.testing.assert_close(got.state_dict()[name], tensor, rtol=0, atol=1e-6)


class Killed(BaseException):
    """Stand-in for the sudden end of a process."""


def kill_after(epoch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """End the run as soon as the checkpoint of an epoch is written."""

    class Killer(EarlyStoppingCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.epoch >= epoch:
                raise Killed

    Killer.__name__ = EarlyStoppingCallback.__name__  # by which the trainer keeps its state
    monkeypatch.setattr(module, "EarlyStoppingCallback", Killer)


@pytest.fixture
def killed(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Return a function that runs a training and kills it after an epoch."""

    def start(epoch: int, work_dir: Path, **settings: Any) -> None:
        with monkeypatch.context() as patch:
            kill_after(epoch, patch)
            with pytest.raises(Killed):
                run(work_dir, **settings)

    return start


# Learning


@pytest.mark.parametrize("form", FORMS)
def test_a_learnable_set_is_learnt(tmp_path: Path, form: str) -> None:
    """Rows labelled with the opposite of the untrained model's answers, so that there is something to learn."""
    base = tiny_base()
    rows, validation = (labelled(base, toy_data(n_rows, seed=seed, flipped=True)) for n_rows, seed in ((24, 0), (6, 1)))
    before = evaluate(base.model, validation, None).metrics
    posterior = toy_posterior(base, **FORMS[form])
    config = toy_config(tmp_path, epochs=16, learning_rate=0.3, lora_learning_rate=3e-2, kl_weight=1e-3)
    fit(base, posterior, rows, validation, config)
    after = evaluated(base, posterior, validation, config).metrics
    assert before.accuracy < 0.5
    assert after.accuracy == 1
    assert after.nll < 0.5 * before.nll
    assert not any(parameter.requires_grad for parameter in posterior.parameters())


def test_the_training_loss_goes_down(tmp_path: Path) -> None:
    run(tmp_path, n_train=32, epochs=5, learning_rate=0.3, kl_weight=0.0)
    losses = [entry["loss"] for entry in last_log(tmp_path) if "loss" in entry]
    assert len(losses) == 4
    assert losses[-1] < 0.5 * losses[0]


def test_the_base_model_stays_as_it_was(tmp_path: Path, base: BaseModel) -> None:
    posterior = toy_posterior(base)
    rows = labelled(base, toy_data(8))
    fit(base, posterior, rows, rows, toy_config(tmp_path, epochs=1))
    kept = tiny_model().state_dict()
    for name, tensor in base.model.state_dict().items():
        assert torch.equal(tensor, kept[name.replace(".base.", ".")])
    assert all(parameter.grad is None for parameter in base.model.parameters())


def test_validation_runs_without_dropout(tmp_path: Path) -> None:
    base = tiny_base("gpt2")
    assert base.model.config.resid_pdrop > 0
    posterior = toy_posterior(base, method="lora")
    rows = labelled(base, toy_data(8))
    fit(base, posterior, rows, rows, toy_config(tmp_path, epochs=1))
    logged = [entry["eval_nll"] for entry in last_log(tmp_path) if "eval_nll" in entry]
    without = evaluate(base.model.eval(), rows, posterior.mean()).metrics.nll
    assert logged == [pytest.approx(without, abs=1e-6)]


def test_a_run_repeats_to_the_last_bit(tmp_path: Path) -> None:
    (first, a), (second, b) = (run(tmp_path / name) for name in ("first", "second"))
    assert all(torch.equal(second.state_dict()[name], tensor) for name, tensor in first.state_dict().items())
    assert a.metrics == b.metrics


def test_what_is_logged_is_the_evaluation_of_what_was_learnt(tmp_path: Path, base: BaseModel) -> None:
    posterior = toy_posterior(base)
    validation = labelled(base, toy_data(6, seed=1))
    config = toy_config(tmp_path, epochs=1, validation_draws=5, seed=3)
    fit(base, posterior, labelled(base, toy_data(8)), validation, config)
    [logged] = [entry for entry in last_log(tmp_path) if "eval_nll" in entry]
    for name, value in evaluated(base, posterior, validation, config).metrics.to_dict().items():
        assert logged[f"eval_{name}"] == pytest.approx(value, abs=1e-6)


def test_the_state_after_the_last_step_is_kept_beside_the_best(tmp_path: Path) -> None:
    base = tiny_base()
    posterior = toy_posterior(base, method="lora")
    config = toy_config(tmp_path, epochs=4, learning_rate=3e-2, warmup=0.0)
    fitted = fit(
        base, posterior, labelled(base, toy_data(16)), labelled(base, toy_data(6, seed=1, flipped=True)), config
    )
    newest = load_file(tmp_path / f"checkpoint-{max(states(tmp_path))}" / "posterior.safetensors")
    best = posterior.state_dict()
    assert fitted.seconds > 0
    assert all(torch.equal(fitted.last[name], tensor) for name, tensor in newest.items())
    assert not all(torch.equal(fitted.last[name], tensor) for name, tensor in best.items())


def test_plain_lora_is_validated_once(tmp_path: Path) -> None:
    assert run(tmp_path, form="lora", epochs=1)[1].n_samples == 1


def test_a_run_that_diverges_ends_in_an_error(tmp_path: Path) -> None:
    with pytest.raises(NumericalError, match=r"not finite|not positive definite"):
        run(tmp_path, learning_rate=1e25)


# Steps


def test_accumulated_small_batches_are_one_large_batch(tmp_path: Path) -> None:
    large, _ = run(tmp_path / "large", form="lora", batch_size=8)
    small, _ = run(tmp_path / "small", form="lora", batch_size=2, gradient_accumulation=4)
    assert max(states(tmp_path / "large")) == max(states(tmp_path / "small")) == 3
    assert_same(small, large)


def test_an_epoch_that_does_not_divide_into_batches_uses_every_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes = []
    forward = Elbo.forward

    def spy(self: Elbo, batch: Any, labels: Tensor, kl_share: float = 1.0) -> Any:
        sizes.append(len(labels))
        return forward(self, batch, labels, kl_share)

    monkeypatch.setattr(Elbo, "forward", spy)
    run(tmp_path, n_train=10, epochs=2)
    assert sizes == [4, 4, 2] * 2


def test_each_epoch_has_its_own_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    epochs = []
    iterate = LengthGroupedOrder.__iter__

    def spy(self: LengthGroupedOrder) -> Iterator[int]:
        epochs.append(self.epoch)
        return iterate(self)

    monkeypatch.setattr(LengthGroupedOrder, "__iter__", spy)
    run(tmp_path)
    assert epochs == [0, 1, 2]


@pytest.mark.parametrize(
    ("kl_warmup", "shares"),
    [(0.0, [1.0] * 6), (0.5, [1 / 3, 2 / 3, 1, 1, 1, 1]), (0.9, [n / 5.4 for n in range(1, 6)] + [1])],
)
def test_the_kl_warms_up_linearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kl_warmup: float, shares: list[float]
) -> None:
    seen = []
    forward = Elbo.forward

    def spy(self: Elbo, batch: Any, labels: Tensor, kl_share: float = 1.0) -> Any:
        seen.append(kl_share)
        return forward(self, batch, labels, kl_share)

    monkeypatch.setattr(Elbo, "forward", spy)
    run(tmp_path, kl_warmup=kl_warmup)
    assert seen == pytest.approx(shares)


def test_the_log_holds_the_loss_and_its_parts(tmp_path: Path) -> None:
    run(tmp_path, n_train=40, epochs=2, kl_warmup=0.0, kl_weight=0.5)
    logged = [entry for entry in last_log(tmp_path) if "loss" in entry]
    assert [entry["step"] for entry in logged] == [10, 20]
    for entry in logged:
        assert entry["loss"] == pytest.approx(entry["nll"] + 0.5 * entry["kl"], rel=1e-4)


def test_noise_differs_between_training_seeds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draws: dict[int, list[Tensor]] = {}
    sample = Posterior.sample

    def spy(self: Posterior, n_samples: int, generator: torch.Generator) -> Any:
        state = generator.get_state()
        draws.setdefault(seed, []).append(torch.randn(3, generator=torch.Generator().set_state(state)))
        return sample(self, n_samples, generator)

    monkeypatch.setattr(Posterior, "sample", spy)
    for seed in (0, 1):
        run(tmp_path / str(seed), seed=seed, epochs=1)
    assert not torch.equal(draws[0][0], draws[1][0])


# Choosing and stopping


def test_the_best_epoch_is_kept_and_training_stops_by_patience(tmp_path: Path) -> None:
    posterior, result = run(
        tmp_path, n_train=16, flipped=True, epochs=9, patience=2, lora_learning_rate=3e-2, form="lora", warmup=0.0
    )
    log = last_log(tmp_path)
    validated = [entry for entry in log if "eval_nll" in entry]
    best = min(range(len(validated)), key=lambda n: validated[n]["eval_recalibrated_nll"])
    assert len(validated) == best + 1 + 2 < 9
    assert result.metrics.nll == pytest.approx(validated[best]["eval_nll"], abs=1e-6)
    [record] = {
        state["best_model_checkpoint"] for step, state in states(tmp_path).items() if step == max(states(tmp_path))
    }
    assert Path(record) == tmp_path / f"checkpoint-{4 * (best + 1)}"
    assert any(parameter.abs().max() > 0 for parameter in posterior.B.parameters())


def test_an_epoch_that_is_better_once_recalibrated_is_better(
    tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = labelled(base, toy_data(40))
    labels = labels_of(rows)
    right = torch.nn.functional.one_hot(labels, rows[0].row.n_choices).double()
    wrong = right.roll(1, -1)

    def answers(n_right: int, sureness: float) -> torch.Tensor:
        """Return log-probabilities with `n_right` correct answers, all equally confident."""
        top = torch.where(torch.arange(len(rows))[:, None] < n_right, right, wrong)
        return (sureness * top).log_softmax(-1)[None]

    doubtful, too_sure = answers(24, 1.0), answers(36, 30.0)
    assert metrics(too_sure.exp().mean(0), labels).nll > metrics(doubtful.exp().mean(0), labels).nll
    epochs = iter((doubtful, too_sure, doubtful))
    monkeypatch.setattr(module.PosteriorTrainer, "validate", lambda self: next(epochs))
    fitted = fit(base, toy_posterior(base), rows, rows, toy_config(tmp_path, epochs=3))
    assert fitted.best_epoch == 2


def test_patience_counts_on_through_a_resume(tmp_path: Path, killed: Any) -> None:
    settings = {
        "n_train": 16,
        "flipped": True,
        "epochs": 9,
        "patience": 3,
        "learning_rate": 3e-2,
        "form": "lora",
        "warmup": 0.0,
    }
    whole, _ = run(tmp_path / "whole", **settings)
    steps = max(states(tmp_path / "whole"))
    killed(steps // 4 - 1, tmp_path / "parts", **settings)
    resumed, _ = run(tmp_path / "parts", resume=True, **settings)
    assert max(states(tmp_path / "parts")) == steps
    assert_same(resumed, whole)


# Resuming


@pytest.mark.parametrize("form", ["lora", "diagonal", "flow"])
def test_a_resumed_run_ends_where_an_uninterrupted_one_does(tmp_path: Path, killed: Any, form: str) -> None:
    whole, a = run(tmp_path / "whole", n_train=10, form=form)
    killed(1, tmp_path / "parts", n_train=10, form=form)
    assert list(states(tmp_path / "parts")) == [3]
    resumed, b = run(tmp_path / "parts", n_train=10, form=form, resume=True)
    assert_same(resumed, whole)
    assert b.metrics.to_dict() == pytest.approx(a.metrics.to_dict(), abs=1e-6)


def test_a_resumed_run_accumulates_gradients_alike(tmp_path: Path, killed: Any) -> None:
    settings = {"n_train": 10, "batch_size": 2, "gradient_accumulation": 3}
    whole, _ = run(tmp_path / "whole", **settings)
    killed(1, tmp_path / "parts", **settings)
    resumed, _ = run(tmp_path / "parts", resume=True, **settings)
    assert_same(resumed, whole)


def test_a_run_may_be_killed_more_than_once(tmp_path: Path, killed: Any) -> None:
    whole, _ = run(tmp_path / "whole")
    killed(1, tmp_path / "parts")
    killed(2, tmp_path / "parts", resume=True)
    assert_same(run(tmp_path / "parts", resume=True)[0], whole)


def test_a_finished_run_resumes_to_what_it_was(tmp_path: Path) -> None:
    whole, a = run(tmp_path)
    again, b = run(tmp_path, resume=True)
    assert_same(again, whole)
    assert b.metrics == a.metrics


def test_resuming_without_a_checkpoint_starts(tmp_path: Path) -> None:
    assert_same(run(tmp_path / "new", resume=True)[0], run(tmp_path / "other")[0])


def test_a_checkpoint_cut_short_is_passed_over(tmp_path: Path, killed: Any) -> None:
    whole, _ = run(tmp_path / "whole")
    killed(1, tmp_path / "parts")
    (tmp_path / "parts" / "checkpoint-4").mkdir()
    assert_same(run(tmp_path / "parts", resume=True)[0], whole)


def test_a_new_run_in_a_used_work_folder_is_as_in_a_fresh_one(tmp_path: Path) -> None:
    run(tmp_path / "work", epochs=4, seed=1)
    assert_same(run(tmp_path / "work")[0], run(tmp_path / "whole")[0])


def test_a_checkpoint_holds_the_posterior_and_not_the_base_model(tmp_path: Path) -> None:
    posterior, _ = run(tmp_path, epochs=1)
    [folder] = tmp_path.glob("checkpoint-*")
    assert (folder / "posterior.safetensors").is_file()
    assert not (folder / "model.safetensors").exists()
    n_bytes = sum(tensor.nbytes for tensor in posterior.state_dict().values())
    assert (folder / "optimizer.pt").stat().st_size < 3 * n_bytes + 50_000
