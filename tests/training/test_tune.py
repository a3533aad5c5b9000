"""The search for a posterior's scale: the chosen trial, and the written adapter."""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from blora.adapter import load_adapter
from blora.base_model import BaseModel, load_base_model
from blora.cli import main
from blora.config import AdapterConfig, PosteriorConfig, SamplingConfig
from blora.decision.metrics import Metrics
from blora.errors import ConfigError, NumericalError
from blora.inference.packing import PackedRow
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.rows.packed import LabelledRow
from blora.training.trials import Trial, choose, clearly_better, trial_of, try_scales
from blora.training.tune import tune
from tests.loras import make_lora
from tests.scenarios import adapted_modules
from tests.training.toys import toy_row, train_arguments, write_jsonl


def trial(scale: float, nll: float) -> Trial:
    found = Metrics(accuracy=0.5, nll=nll, ece=0, ece_adaptive=0, brier=0, aurc=0)
    return Trial(scale, 1.0, 1.0, 0.0, found, torch.full((400,), nll), 400)


def test_the_widest_within_the_tolerance_of_the_best_wins() -> None:
    trials = [trial(0.5, 1.0), trial(1.0, 0.99), trial(2.0, 0.994), trial(4.0, 1.2)]
    assert choose(trials, 0.005).scale == 2.0
    assert choose(trials, 0.0).scale == 1.0
    assert choose(trials, 1.0).scale == 4.0


@pytest.mark.parametrize(
    ("gains", "better"),
    [
        ([0.3, 0.1, 0.2, 0.2], True),
        ([0.9, -0.6, 0.2, -0.4], False),  # as likely by chance
        ([-0.3, -0.1, -0.2, -0.2], False),
        ([0.3], False),  # one row tells nothing about chance
    ],
)
def test_a_trial_is_clearly_better_by_more_than_a_standard_error(gains: list[float], better: bool) -> None:
    other = replace(trial(1.0, 1.0), losses=torch.ones(len(gains)))
    texts = [str(row) for row in range(len(gains))]
    one = replace(other, losses=other.losses - torch.tensor(gains))
    assert clearly_better(one, other, texts) is better
    assert clearly_better(one, other, ["the same"] * len(gains)) is False
    twice = [replace(each, losses=each.losses.repeat(2)) for each in (one, other)]
    assert clearly_better(*twice, texts * 2) is better


def log_probs(error: float) -> Tensor:
    """Log-probabilities of two draws for four rows of two choices; the second has the probability `error`."""
    row = torch.tensor([1 - error, error]).log()
    return row.expand(2, 4, 2)


def rows_of(labels: Sequence[int], power: float = 1.0) -> list[LabelledRow]:
    """Rows with these labels, whose choices have four tokens each."""
    row = PackedRow((1,), ((2, 3, 4, 5), (6, 7, 8, 9)), "question", power)
    return [LabelledRow(row, label) for label in labels]


LABELS = (0, 0, 0, 1)
ROWS = rows_of(LABELS)


def test_scales_are_tried_from_the_narrowest_until_the_valley_is_left() -> None:
    seen = []

    def score(scale: float) -> Tensor:
        seen.append(scale)
        wrong = scale > 2.0  # beyond it the model prefers the wrong choice
        return log_probs(0.75 if wrong else 0.25)

    trials = try_scales(score, ROWS, [8.0, 4.0, 0.5, 1.0, 2.0], 0.001)
    assert seen == [0.5, 1.0, 2.0, 4.0]
    assert [t.scale for t in trials] == seen
    assert choose(trials, 0.001).scale == 2.0


@pytest.mark.parametrize(("tolerance", "chosen"), [(0.005, 2.0), (0.1, 8.0)])
def test_the_search_goes_on_as_far_as_the_tolerance_where_the_nll_is_low(tolerance: float, chosen: float) -> None:
    """A twentieth of a low NLL is less than the tolerance."""
    n, n_wrong = 4000, {0.5: 4, 1.0: 5, 2.0: 6, 4.0: 15, 8.0: 60, 16.0: 300, 32.0: 4}

    def score(scale: float) -> Tensor:
        error = n_wrong[scale] / n
        right = torch.tensor([1 - error, error]).log()
        wrong = torch.arange(n)[:, None] < n_wrong[scale]
        return torch.where(wrong, right.flip(0), right).expand(2, n, 2)

    trials = try_scales(score, rows_of([0] * n), list(n_wrong), tolerance)
    assert choose(trials, tolerance).scale == chosen


def test_a_scale_at_which_the_model_overflows_ends_the_search() -> None:
    def score(scale: float) -> Tensor:
        if scale > 1:
            raise NumericalError("too wide")
        return log_probs(0.25)

    assert [t.scale for t in try_scales(score, ROWS, [1.0, 2.0, 4.0], 0.001)] == [1.0]
    with pytest.raises(NumericalError, match="too wide"):
        try_scales(score, ROWS, [2.0], 0.001)


def test_each_trial_has_the_temperature_of_its_own_scale() -> None:
    many = 1000  # enough for the prior on the temperature to weigh nothing
    found = try_scales(lambda scale: log_probs(0.01).repeat(1, many, 1), rows_of(LABELS * many), [1.0], 0.001)[0]
    odds = math.log(0.99 / 0.01) / found.temperature
    assert 1 / (1 + math.exp(-odds)) == pytest.approx(0.75, abs=1e-3)  # three of four are right


def test_the_length_power_goes_on_from_that_of_the_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (2000,), generator=generator)
    logits = 2 * torch.randn(2000, 2, generator=generator)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0].tolist()
    for power in (0.5, 1.0):  # divided by L**power, where it is L**0.6 that calibrates
        rows = [
            LabelledRow(PackedRow((1,), ((2,) * length, (3,) * length), "question", power), label)
            for length, label in zip(lengths.tolist(), labels, strict=True)
        ]
        scored = (logits * (lengths ** (0.6 - power))[:, None]).log_softmax(-1)[None]
        found = trial_of(1.0, scored, rows)
        assert found.length_power == pytest.approx(0.6, abs=0.1)
        assert found.temperature == pytest.approx(1.0, abs=0.1)


def test_choices_that_are_all_as_long_leave_the_length_power() -> None:
    assert trial_of(1.0, log_probs(0.1), rows_of(LABELS, power=0.7)).length_power == 0.7


@pytest.mark.parametrize("tolerance", ["-1", "nan", "inf"])
def test_a_tolerance_that_is_none_is_refused_before_the_work(
    base_folder: Path, toy_file: Path, tolerance: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, arguments = make_lora(tmp_path / "lora"), ("--base-model", str(base_folder), "--device", "cpu")
    command = ["bayesianize", str(lora), "--data", str(toy_file), "--output", str(tmp_path / "toy"), *arguments]
    assert main([*command, f"--tolerance={tolerance}"]) == 1
    assert f"got tolerance = {float(tolerance)}, expected nats of at least 0" in capsys.readouterr().err


def test_no_scales_are_refused(base: BaseModel) -> None:
    posterior = Posterior(adapted_modules(base.model), PosteriorConfig(), seed=0)
    with pytest.raises(ConfigError, match="got no scales, expected at least one"):
        tune(base, posterior, ROWS, SamplingConfig(), scales=[], tolerance=0.005)


@pytest.fixture
def unseen(tmp_path: Path) -> Path:
    """Rows that no adapter in these tests is trained on."""
    return write_jsonl(tmp_path / "unseen.jsonl", [toy_row(50 + index, index % 2) for index in range(20)])


def test_rows_that_it_was_trained_on_do_not_tune_an_adapter(
    base_folder: Path, toy_file: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, mixed = tmp_path / "adapter", tmp_path / "mixed.jsonl"
    assert main(["train", *train_arguments(base_folder, toy_file, adapter)]) == 0
    mixed.write_text(unseen.read_text() + toy_file.read_text())
    arguments = ["--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32"]
    assert main(["tune", str(adapter), "--data", str(mixed), *arguments]) == 1
    assert "(train)" in capsys.readouterr().err


def test_tuning_widens_the_posterior_and_keeps_its_mean(
    base_folder: Path, toy_file: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter, tuned = tmp_path / "adapter", tmp_path / "tuned"
    assert main(["train", *train_arguments(base_folder, toy_file, adapter)]) == 0
    arguments = ["--data", str(unseen), "--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32"]
    assert main(["tune", str(adapter), "--output", str(tuned), "--scales", "2", *arguments]) == 0
    out = capsys.readouterr().out
    assert "<- chosen" in out
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    before, after = load_adapter(adapter, base), load_adapter(tuned, base)
    assert after.digest != before.digest
    assert after.config.training["tuning"]["scale"] == 2.0
    assert after.config.training["tuning"]["n_examples"] == 20
    assert after.config.sampling.temperature != before.config.sampling.temperature
    narrow, wide = (a.posterior.sample(4, generator_of(0)) for a in (before, after))
    for name, factors in before.posterior.mean().factors.items():
        torch.testing.assert_close(after.posterior.mean().factors[name].A, factors.A, rtol=1e-4, atol=1e-5)
        for side in ("A", "B"):
            mean = getattr(factors, side)
            spread = getattr(narrow.factors[name], side) - mean
            wider = getattr(wide.factors[name], side) - mean
            torch.testing.assert_close(wider, 2 * spread, rtol=1e-2, atol=1e-4)


def test_a_plain_lora_is_scored_once(
    base_folder: Path, toy_file: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lora, tuned = tmp_path / "lora", tmp_path / "tuned"
    assert main(["train", *train_arguments(base_folder, toy_file, lora, "--method", "lora")]) == 0
    capsys.readouterr()
    arguments = ["--data", str(unseen), "--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32"]
    assert main(["tune", str(lora), "--output", str(tuned), "--scales", "0.5,2", *arguments]) == 1
    assert f"got scales for the plain LoRA {lora}, which has no width, expected none" in capsys.readouterr().err
    assert main(["tune", str(lora), "--output", str(tuned), *arguments]) == 0
    assert capsys.readouterr().out.count("scale ") == 1
    record = AdapterConfig.from_json((tuned / "bayesian_config.json").read_text()).training
    assert [trial["scale"] for trial in record["tuning"]["trials"]] == [1.0]


def test_without_an_output_the_adapter_is_replaced(
    base_folder: Path, toy_file: Path, unseen: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = tmp_path / "adapter"
    assert main(["train", *train_arguments(base_folder, toy_file, adapter)]) == 0
    arguments = ["--data", str(unseen), "--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32"]
    assert main(["tune", str(adapter), "--scales", "0.5,1", "--limit", "7", *arguments]) == 0
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    once = load_adapter(adapter, base).config.training["tuning"]
    assert once["n_examples"] == 7
    (adapter / "calibration.json").write_text("{}")
    capsys.readouterr()
    assert main(["tune", str(adapter), "--scales", "2", *arguments]) == 0
    assert "run blora calibrate again" in capsys.readouterr().err
    twice = load_adapter(adapter, base)
    assert twice.config.training["tuning"]["before"] == once
    assert twice.config.posterior.lambda_max == 2 * once["scale"]


def test_a_tuned_adapter_keeps_its_notes_and_its_card_tells_of_the_tuned_posterior(
    base_folder: Path, toy_file: Path, unseen: Path, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    assert main(["train", *train_arguments(base_folder, toy_file, adapter)]) == 0
    (adapter / ".git").mkdir()
    (adapter / ".git" / "HEAD").write_text("ref: refs/heads/main")
    (adapter / "NOTES.md").write_text("irreplaceable")
    arguments = ["--data", str(unseen), "--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32"]
    assert main(["tune", str(adapter), "--scales", "2", *arguments]) == 0
    assert (adapter / ".git" / "HEAD").read_text() == "ref: refs/heads/main"
    assert (adapter / "NOTES.md").read_text() == "irreplaceable"
    record = AdapterConfig.from_json((adapter / "bayesian_config.json").read_text()).training
    card = (adapter / "README.md").read_text().partition("## Validation")[2]
    [trial] = record["tuning"]["trials"]
    assert f"| nll | {trial['nll']:.4f} |" in card
    assert "| source | unseen.jsonl |" in card
    assert "| n_examples | 20 |" in card
    assert record["validation"]["digest"] not in card
