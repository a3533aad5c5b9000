"""The last fit of a head alone, to the training rows and the validation rows that were set aside."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blora.adapter import load_adapter, read_config
from blora.adapter.opening import open_base
from blora.base_model import BaseModel
from blora.cli import main
from blora.config import SamplingConfig
from blora.errors import DataError
from blora.posterior.decision_head import DecisionHead
from blora.posterior.draws import NO_LORA
from blora.questions.fingerprints import joined
from blora.training.config import NEW_PROMPT
from blora.training.head.features import read_features
from blora.training.head.train import TrainedHead, train_head
from blora.training.rows.examples import examples_for, read_examples, split_examples
from blora.training.rows.overlap import check_unseen, fingerprints
from blora.training.rows.packed import LabelledRow, pack_examples
from tests.heads import prefer_loras
from tests.training.head.test_fit import FAST, arguments, fixed
from tests.training.toys import CHOICES, toy_data, write_jsonl


def rows_of(base: BaseModel, folder: Path, readout: str, seed: int) -> list[LabelledRow]:
    rows = toy_data(40, seed=seed)
    rows = [row | {"question": f"{row['question']} {seed}"} for row in rows]
    file = write_jsonl(folder / f"{seed}.jsonl", fixed(rows) if readout == "linear" else rows)
    choices = CHOICES if readout == "linear" else None
    prompt = replace(NEW_PROMPT, template="{prompt}", choices=choices, readout=readout)
    return pack_examples(read_examples(str(file), choices=choices), base, prompt)


@pytest.fixture(scope="module", params=["linear", "pointer"])
def heads(request: pytest.FixtureRequest, base_folder: Path, tmp_path_factory: pytest.TempPathFactory):
    """The head of the training rows, that of all rows, the base model, and both kinds of rows."""
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    train, validation = (rows_of(base, tmp_path_factory.mktemp("rows"), request.param, seed) for seed in (1, 2))
    settings = (base, train, validation, SamplingConfig(n_samples=8), None)
    return *(train_head(*settings, on_all=on_all) for on_all in (False, True)), base, train, validation


def test_the_posterior_is_that_of_all_rows_at_the_settings_that_were_chosen(
    heads: tuple[TrainedHead, TrainedHead, BaseModel, list[LabelledRow], list[LabelledRow]],
) -> None:
    chosen, on_all, base, train, validation = heads
    rows = [*train, *validation]
    together = read_features(base.model, rows, chosen.config, NO_LORA, "")
    expected = chosen.again(together, rows).widen(chosen.trial.scale)
    assert_same(on_all.posterior.head, expected)
    with pytest.raises(AssertionError):
        assert_same(chosen.posterior.head, expected)
    assert on_all.config == on_all.posterior.head.config


def test_all_figures_are_of_the_head_that_had_not_seen_the_validation_rows(
    heads: tuple[TrainedHead, TrainedHead, BaseModel, list[LabelledRow], list[LabelledRow]],
) -> None:
    chosen, on_all, *_ = heads
    assert on_all.trial == chosen.trial
    assert on_all.served == chosen.served
    assert on_all.parts == chosen.parts
    torch.testing.assert_close(on_all.familiarity.center, chosen.familiarity.center)
    assert on_all.familiarity.config == chosen.familiarity.config


def assert_same(head: DecisionHead, expected: DecisionHead) -> None:
    """Compare two heads by their logits of random states, because the sign of a direction means nothing.

    The states of all rows were read in other batches, whose rounding the fit carries to a few thousandths of the weights.
    """
    states = torch.randn(50, len(expected.center), generator=torch.Generator().manual_seed(0))
    assert head.config == expected.config
    found, wanted = (one.project(states) @ one.weight[: len(one.directions)] for one in (head, expected))
    torch.testing.assert_close(found, wanted, rtol=1e-2, atol=1e-2 * float(wanted.abs().max()))
    torch.testing.assert_close(head.count_weight, expected.count_weight, rtol=3e-2, atol=5e-3)


def test_rows_that_were_set_aside_count_as_trained_on_and_the_card_says_so(base_folder: Path, tmp_path: Path) -> None:
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(base_folder, data, tmp_path / "toy")) == 0
    config = read_config(tmp_path / "toy")
    examples = examples_for(config, str(data), split="train")
    assert config.training["seen"] == {"train": fingerprints(examples)}
    _, aside = split_examples(examples, None, None, seed=0)
    with pytest.raises(DataError, match=r"got 6 of 6 questions .*\(train\)"):
        check_unseen({"seen": config.training["seen"]}, aside)
    card = (tmp_path / "toy" / "README.md").read_text()
    assert "Before the head was fitted to these rows too:" in card
    assert "6 of them, before the head was fitted to them too" in card


def test_rows_of_a_validation_file_are_not_trained_on(base_folder: Path, tmp_path: Path) -> None:
    rows = fixed(toy_data(60))
    files = [write_jsonl(tmp_path / f"{name}.jsonl", part) for name, part in (("some", rows[:50]), ("rest", rows[50:]))]
    assert main(arguments(base_folder, files[0], tmp_path / "toy", "--validation", str(files[1]))) == 0
    config = read_config(tmp_path / "toy")
    train, validation = (fingerprints(examples_for(config, str(file), split="train")) for file in files)
    assert config.training["seen"] == {"train": train, "validation": validation}
    assert "fitted to these rows too" not in (tmp_path / "toy" / "README.md").read_text()


def test_above_a_lora_the_validation_rows_are_not_trained_on(
    base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The LoRA has been trained on the other rows, whose states under it are no longer like theirs."""
    prefer_loras(monkeypatch)
    data = write_jsonl(tmp_path / "rows.jsonl", fixed(toy_data(60)))
    assert main(arguments(base_folder, data, tmp_path / "toy", "--layers", "all", *FAST)) == 0
    config = read_config(tmp_path / "toy")
    assert config.modules
    seen = config.training["seen"]
    assert seen.keys() == {"train", "validation"}
    assert joined(*seen.values()) == fingerprints(examples_for(config, str(data), split="train"))
    assert load_adapter(tmp_path / "toy", open_base(str(base_folder), device="cpu", dtype="float32")).config == config
