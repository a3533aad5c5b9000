"""A head's fit against closed forms and a library's fit, and its way from rows to an adapter that answers."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.linear_model import LogisticRegression

import blora
from blora.adapter import load_adapter, read_config
from blora.adapter.opening import open_adapter, open_base
from blora.base_model import BaseModel
from blora.cli import main
from blora.config import HeadConfig
from blora.decision.guesses import modest
from blora.decision.temperature import temper
from blora.errors import AdapterError, ConfigError
from blora.inference.packing import PackedRow
from blora.inference.reading import head_log_probs
from blora.posterior.decision_head import Features
from blora.posterior.draws import NO_LORA
from blora.posterior.inject import inject, layer_index
from blora.posterior.noise import generator_of
from blora.training.config import TOLERANCE_NATS
from blora.training.evaluate import predict_with_distances
from blora.training.head.fit import FittedHead, Regression, fit_head
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import LabelledRow, pack_examples
from blora.training.trials import Trial
from tests.blora.adapters import rewrite_json, rewrite_tensors
from tests.heads import prefer_loras, row_after_row, texts_with
from tests.training.toys import CHOICES, toy_data, train_arguments, write_jsonl

FAST = ("--epochs", "2", "--batch-size", "4")
CONFIG = HeadConfig(depths=(1,), n_states=5, n_directions=5, n_grams=4)


def linear_rows(labels: list[int], n_choices: int = 3) -> list[LabelledRow]:
    row = PackedRow((1,), (), "none", readout="linear", outputs=tuple(range(n_choices)))
    return [LabelledRow(row, label) for label in labels]


def linear_task(n_rows: int, seed: int) -> tuple[Features, list[LabelledRow]]:
    """Rows whose label follows from their states, with noise."""
    generator = torch.Generator().manual_seed(seed)
    states = torch.randn(n_rows, 5, generator=generator) * torch.tensor([3.0, 1.0, 0.5, 1.0, 2.0]) + 1
    truth = torch.randn(5, 3, generator=torch.Generator().manual_seed(0))
    noise = torch.randn(n_rows, 3, generator=generator)
    labels = ((states - 1) @ truth + 2 * noise).argmax(-1).tolist()
    grams = texts_with(torch.randint(0, 3, (n_rows, 4), generator=generator))
    return Features(states, torch.zeros(n_rows, 0), grams=grams), linear_rows(labels)


def pointer_task(n_rows: int, seed: int) -> tuple[Features, list[LabelledRow]]:
    """Questions with two or three choices, of which the states tell the right one, with noise."""
    generator = torch.Generator().manual_seed(seed)
    states, counts = torch.zeros(n_rows, 3, 5), torch.zeros(n_rows, 3, 3)
    rows = []
    for b in range(n_rows):
        n = 2 + b % 2
        states[b, :n] = torch.randn(n, 5, generator=generator) + 4 * torch.randn(5, generator=generator)
        counts[b, :n] = torch.randn(n, 3, generator=generator)
        score = states[b, :n, 0] - states[b, :n, 1] + torch.randn(n, generator=generator)
        row = PackedRow((1,), tuple((2, 3) for _ in range(n)), "none", readout="pointer")
        rows.append(LabelledRow(row, int(score.argmax())))
    return Features(states, counts), rows


def fit_pointer(
    config: HeadConfig,
    train: tuple[Features, list[LabelledRow]],
    validation: tuple[Features, list[LabelledRow]],
    part: str = "both",
) -> FittedHead:
    """Fit a head to rows whose features are read as in training, without padding."""
    read = [row_after_row(features, [row.row.n_choices for row in rows]) for features, rows in (train, validation)]
    return fit_head(Regression.of(config, read[0], train[1]), read[1], validation[1], NO_LORA, part)


@pytest.mark.parametrize("n_directions", [2, 5])
def test_a_linear_head_is_the_minimum_that_scikit_learn_finds(n_directions: int) -> None:
    (train, rows), (validation, held_out) = linear_task(300, 1), linear_task(100, 2)
    config = replace(CONFIG, n_directions=n_directions)
    fitted = fit_head(Regression.of(config, train, rows), validation, held_out, NO_LORA, "states")
    head = fitted.head
    z = head.project(train.states).numpy()
    precision = fitted.precisions[0] * len(head.directions) / len(head.center)
    reference = LogisticRegression(C=1 / precision, tol=1e-8, max_iter=10000).fit(z, [row.label for row in rows])
    expected = torch.tensor(reference.predict_proba(head.project(validation.states).numpy())).double()
    found = head_log_probs(head.mean(NO_LORA), [row.row for row in held_out], validation)[0].exp().double()
    torch.testing.assert_close(found, expected, rtol=0.02, atol=2e-3)


def test_a_label_is_the_output_of_its_choice_wherever_the_row_has_it() -> None:
    train, rows = linear_task(50, 1)
    other = replace(rows[0].row, outputs=(2, 0, 1))
    turned = [LabelledRow(other, other.outputs.index(row.label)) for row in rows]
    one, two = (Regression.of(CONFIG, train, asked).labels for asked in (rows, turned))
    assert one.tolist() == two.tolist() == [row.label for row in rows]


def test_the_posterior_of_a_linear_head_is_the_kronecker_factored_laplace_approximation() -> None:
    (train, rows), (validation, held_out) = linear_task(200, 1), linear_task(50, 2)
    fitted = fit_head(Regression.of(CONFIG, train, rows), validation, held_out, NO_LORA, "states")
    head = fitted.head
    z = head.project(train.states).double()
    probs = head_log_probs(head.mean(NO_LORA), [row.row for row in rows], train)[0].exp().double()
    fisher = torch.diag(probs.mean(0)) - probs.T @ probs / len(probs)
    precision = fitted.precisions[0] * len(head.directions) / len(head.center)
    inputs = z.T @ z
    assert (inputs - inputs.diagonal().diag()).abs().max() < 0.02 * inputs.diagonal().max()  # principal directions
    dense = torch.linalg.inv(torch.kron(inputs.diagonal().diag(), fisher) + precision * torch.eye(inputs.shape[0] * 3))
    rotate = torch.kron(torch.eye(len(z[0])).double(), head.basis.double())
    found = rotate @ torch.diag(head.deviation.double().square().flatten()) @ rotate.T
    torch.testing.assert_close(found, dense, rtol=1e-3, atol=1e-4 * float(dense.abs().max()))


def test_the_posterior_of_a_pointer_head_has_the_exact_diagonal_of_the_hessian() -> None:
    train, rows = pointer_task(200, 1)
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)
    fitted = fit_pointer(config, (train, rows), pointer_task(60, 2))
    head = fitted.head
    labels = torch.tensor([row.label for row in rows])

    def nll(weight: torch.Tensor) -> torch.Tensor:
        z, counts = head.project(train.states).double(), head.scaled(train.counts).double()
        logits = z @ weight + (counts @ head.count_weight.double())[..., 0]
        absent = torch.arange(3) >= torch.tensor([[row.row.n_choices] for row in rows])
        log_probs = logits.masked_fill(absent, -1e9).log_softmax(-1)
        return -log_probs.gather(1, labels[:, None]).sum()

    weight = head.weight[:, 0].double()
    hessian = torch.autograd.functional.hessian(nll, weight).diagonal()  # type: ignore[no-untyped-call]
    precision = fitted.precisions[0] * len(head.directions) / len(head.center)
    torch.testing.assert_close(head.deviation[:, 0].double(), (hessian + precision).rsqrt(), rtol=1e-3, atol=1e-5)
    gradient = torch.autograd.functional.jacobian(nll, weight) + precision * weight  # type: ignore[no-untyped-call]
    assert gradient.abs().max() < 0.2  # of several hundred at a weight of zero


def test_a_pointer_head_finds_what_tells_the_right_choice() -> None:
    config = HeadConfig(depths=(1,), n_states=5, n_directions=5)
    by_part = {
        part: fit_pointer(config, pointer_task(400, 1), pointer_task(200, 2), part).trial.metrics.nll
        for part in ("counts", "states", "both")
    }
    assert by_part["states"] < 0.75 * by_part["counts"]
    assert by_part["both"] < by_part["counts"]


def test_more_directions_than_the_rows_span_are_left_out() -> None:
    (train, rows), (validation, held_out) = linear_task(4, 1), linear_task(50, 2)
    head = fit_head(Regression.of(CONFIG, train, rows), validation, held_out, NO_LORA, "states").head
    assert head.directions.shape == (3, 5)
    assert head.config.n_directions == 3


# From rows to an adapter


def arguments(base: Path, data: Path, output: Path, *more: str) -> list[str]:
    return [
        *("train", "--data", str(data), "--output", str(output), "--base-model", str(base)),
        *("--device", "cpu", "--dtype", "float32", "--n-samples", "5", *more),
    ]


def fixed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{"prompt": row["question"], "label": CHOICES[row["label"]]} for row in rows]


def test_rows_that_the_model_cannot_tell_apart_are_refused(
    base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(2)))
    labels = ("--choices", "|".join(CHOICES))
    assert main(arguments(base_folder, data, tmp_path / "toy", *labels)) == 1
    assert "got training rows that the model cannot tell apart, expected at least two" in capsys.readouterr().err


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_training_writes_a_head_that_answers(readout: str, base_folder: Path, tmp_path: Path) -> None:
    rows = toy_data(80)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(rows) if readout == "linear" else rows)
    assert main(arguments(base_folder, data, tmp_path / "toy")) == 0
    config = read_config(tmp_path / "toy")
    assert config.prompt.readout == readout
    assert (config.modules, config.posterior.method, config.sampling.n_samples) == ({}, "lora", 5)
    assert not (tmp_path / "toy" / "adapter_config.json").exists()
    model = blora.load(tmp_path / "toy", base_model=str(base_folder), dtype="float32")
    asked = [row["question"] for row in toy_data(30, seed=9)]
    choices = None if readout == "linear" else list(CHOICES)
    answers = model.predict(asked, choices=choices)
    right = [a.top_choice == CHOICES[row["label"]] for a, row in zip(answers, toy_data(30, seed=9), strict=True)]
    assert np.mean(right) > 0.8
    assert max(answer.mutual_information for answer in answers) > 0


def test_the_record_holds_what_each_part_reaches(base_folder: Path, tmp_path: Path, capsys: Any) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(80)))
    assert main(arguments(base_folder, data, tmp_path / "toy")) == 0
    parts = read_config(tmp_path / "toy").training["parts"]
    assert list(parts) == [
        "regression on n-grams",
        "regression on frozen states",
        "regression on all of them together",
        "head, posterior mean",
        "head, 5 draws",
    ]
    assert parts["head, 5 draws"]["nll"] <= parts["head, posterior mean"]["nll"] + 2 * TOLERANCE_NATS
    shown = capsys.readouterr().out
    assert all(name in shown for name in parts)


@pytest.mark.parametrize("better", [True, False])
@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_a_lora_below_the_head_stays_if_it_is_clearly_better(
    readout: str,
    better: bool,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    compared = []

    def verdict(trial: Trial, other: Trial, texts: list[str]) -> bool:
        compared.append((trial.metrics.nll, other.metrics.nll, len({*texts})))
        return better

    monkeypatch.setattr("blora.training.run.clearly_better", verdict)
    rows = toy_data(60)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(rows) if readout == "linear" else rows)
    assert main(arguments(base_folder, data, tmp_path / "toy", "--layers", "all", *FAST)) == 0
    config = read_config(tmp_path / "toy")
    parts = config.training["parts"]
    alone, above = (parts[f"head, 5 draws{name}"]["nll"] for name in ("", ", above a LoRA"))
    assert compared == [(above, alone, 6)]
    assert bool(config.modules) == better
    validation = config.training["validation"]
    # Six validation rows recalibrate the head alone with its training rows out of fold.
    assert validation["n_recalibrating"] == (6 if config.modules else 60)
    assert validation["nll"] == (above if config.modules else pytest.approx(alone, abs=0.05))
    assert ("recalibrated with 54 training rows out of fold" in capsys.readouterr().out) == (not config.modules)


@pytest.fixture
def above_lora(base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An adapter whose head is above a LoRA, though the head alone may be better."""
    prefer_loras(monkeypatch)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(base_folder, data, tmp_path / "toy", "--layers", "1", "--rank", "2", *FAST)) == 0
    return tmp_path / "toy"


def test_an_adapter_with_a_lora_below_its_head_answers_as_it_was_evaluated(above_lora: Path, base_folder: Path) -> None:
    toy, data = above_lora, above_lora.with_name("rows.jsonl")
    config = read_config(toy)
    assert (config.posterior.method, config.posterior.rank) == ("lora", 2)
    assert {layer_index(name) for name in config.modules} == {1}
    assert not toy.with_name("toy.work").exists()
    assert any(part.any() for name, part in load_file(toy / "adapter_model.safetensors").items() if "lora_B" in name)
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    adapter = load_adapter(toy, base)
    rows = pack_examples(read_examples(data, choices=config.prompt.choices), base, config.prompt)
    inject(base.model, config.modules)
    draws = adapter.posterior.sample(5, generator_of(config.sampling.seed))
    found, distances = predict_with_distances(base.model, rows, draws, adapter.familiarity, about="")
    probs = temper(found, config.sampling.temperature, config.sampling.lapse)
    assert adapter.familiarity is not None
    assert distances is not None
    expected = modest(probs, adapter.familiarity.guesses(distances), torch.ones(2)).mean(0)
    model = blora.load(toy, base_model=str(base_folder), dtype="float32")
    answers = model.predict([row["prompt"] for row in fixed(toy_data(60))])
    by_choice = [{one.choice: one.probability for one in answer.probabilities} for answer in answers]
    probs = torch.tensor([[found[choice] for choice in config.prompt.choices or ()] for found in by_choice])
    torch.testing.assert_close(probs.float(), expected.float(), rtol=1e-3, atol=1e-4)


def test_a_head_is_tuned_on_the_states_under_its_lora(above_lora: Path, base_folder: Path, tmp_path: Path) -> None:
    rows = [row | {"prompt": row["prompt"] + "!"} for row in fixed(toy_data(60, seed=3))]
    data = write_jsonl(tmp_path / "other.jsonl", rows)
    common = ("--base-model", str(base_folder), "--dtype", "float32")
    assert main(["tune", str(above_lora), "--data", str(data), "--scales", "0.5,1,2", *common]) == 0
    tuning = read_config(above_lora).training["tuning"]
    [trial] = [trial for trial in tuning["trials"] if trial["scale"] == tuning["scale"]]
    served = blora.load(above_lora, base_model=str(base_folder), dtype="float32").evaluate(rows)
    assert served.metrics.nll == pytest.approx(trial["nll"], abs=1e-4)


def test_a_setting_of_a_posterior_over_a_lora_means_no_head(base_folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(30)))
    assert (
        main(["train", *train_arguments(base_folder, data, tmp_path / "toy", "--head", "auto", "--epochs", "1")]) == 0
    )
    config = read_config(tmp_path / "toy")
    assert (config.head, config.posterior.method) == (None, "bayesian")


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--head", "none", "--layers", "none"), "got neither layers nor a head"),
        (("--head", "linear", "--family", "flow"), "got --family with head linear, which does without such a setting"),
        (("--head", "linear", "--scoring", "label"), "got --scoring label with --head linear, which reads no letters"),
        (("--head", "pointer", "--choice-end", "none"), "newline or eos"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(
    more: tuple[str, ...], said: str, base_folder: Path, tmp_path: Path, capsys: Any
) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(20)))
    assert main(arguments(base_folder, data, tmp_path / "toy", *more)) != 0
    assert said in capsys.readouterr().err


def test_tuning_calibrating_and_exporting_know_a_head(base_folder: Path, tmp_path: Path, capsys: Any) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    other = write_jsonl(
        tmp_path / "other.jsonl", [row | {"prompt": row["prompt"] + "!"} for row in fixed(toy_data(200))]
    )
    toy, common = tmp_path / "toy", ("--base-model", str(base_folder), "--dtype", "float32")
    assert main(arguments(base_folder, data, toy)) == 0
    before = read_config(toy).sampling
    assert main(["tune", str(toy), "--data", str(other), "--limit", "60", "--scales", "0.5,2", *common]) == 0
    assert read_config(toy).sampling != before
    rows = write_jsonl(tmp_path / "rest.jsonl", [json.loads(line) for line in other.read_text().splitlines()[60:]])
    assert main(["calibrate", str(toy), "--data", str(rows), "--target-risk", "0.3", *common]) == 0
    assert main(["evaluate", str(toy), "--data", str(rows), *common]) == 0
    capsys.readouterr()
    assert main(["export", str(toy), str(tmp_path / "draws"), *common]) != 0
    assert "a decision head, whose draws are not LoRAs" in capsys.readouterr().err


@pytest.fixture(scope="module")
def with_head(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("head")
    data = write_jsonl(folder / "rows.jsonl", fixed(toy_data(40)))
    assert main(arguments(base_folder, data, folder / "toy")) == 0
    return folder / "toy"


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda folder: (folder / "head.safetensors").unlink(), "without head.safetensors"),
        (
            lambda folder: rewrite_tensors(lambda t: t.update(bias=torch.zeros(3)))(folder / "head.safetensors"),
            r"got bias of shape \(3,\)",
        ),
        (
            lambda folder: rewrite_tensors(lambda t: t["weight"].fill_(float("nan")))(folder / "head.safetensors"),
            "not finite",
        ),
        (
            lambda folder: rewrite_json(
                lambda raw: [raw[part].update(depths=[1, 9]) for part in ("head", "familiarity")]
            )(folder / "bayesian_config.json"),
            "reads at layer 9, expected at most 2",
        ),
        (
            lambda folder: rewrite_json(lambda raw: raw.update(head=None))(folder / "bayesian_config.json"),
            "no adapted modules and no head",
        ),
        (
            lambda folder: rewrite_json(lambda raw: raw["prompt"].update(readout="pointer"))(
                folder / "bayesian_config.json"
            ),
            "shape|counts",
        ),
    ],
)
def test_a_spoilt_head_is_refused(change: Any, said: str, with_head: Path, base_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(with_head, tmp_path / "toy"))
    change(folder)
    with pytest.raises((AdapterError, ConfigError), match=said):
        open_adapter(folder, base_model=str(base_folder), device="cpu", dtype="float32")


def test_a_head_that_takes_too_much_memory_is_refused_before_it_is_read(with_head: Path, base_folder: Path) -> None:
    base: BaseModel = open_base(str(base_folder), device="cpu", dtype="float32")
    with pytest.raises(AdapterError, match="MiB of memory, expected at most"):
        load_adapter(with_head, base, max_memory_bytes=2**10)


def test_a_lora_that_replaces_a_head_leaves_none_of_its_files(
    with_head: Path, base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(with_head, tmp_path / "toy"))
    data = write_jsonl(tmp_path / "rows.jsonl", toy_data(20))
    assert main(["train", *train_arguments(base_folder, data, folder, "--epochs", "1")]) == 0
    assert {file.name for file in folder.iterdir()} == {
        *("README.md", "adapter_config.json", "adapter_model.safetensors"),
        *("bayesian_config.json", "posterior.safetensors"),
    }
