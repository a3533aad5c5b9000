"""The objective of a LoRA below a head: its value, what it trains, and what an epoch of it changes."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from blora.base_model import BaseModel
from blora.inference.fork import first_layer
from blora.inference.packing import PackedRow
from blora.inference.reading import head_log_probs, read_rows
from blora.posterior.inject import inject
from blora.training.head.objective import HeadObjective
from blora.training.lora.optimizer import make_optimizer
from blora.training.lora.trunk import with_states
from blora.training.rows.packed import LabelledRow
from tests.blora.inference.test_reading import TEXTS, config_of, packed
from tests.heads import LABELS, head_of
from tests.scenarios import tiny_base
from tests.training.toys import toy_config, toy_posterior

READOUTS = ("linear", "pointer")


def objective_of(
    base: BaseModel, readout: str, *, precision: float = 0.0, layers: Sequence[int] = (0, 1)
) -> HeadObjective:
    lora = toy_posterior(base, method="lora")
    inject(base.model, lora.modules_shape)
    if tuple(layers) != (0, 1):
        kept = {name for name in lora.modules_shape if first_layer([name]) in layers}
        lora.modules_shape = {name: shape for name, shape in lora.modules_shape.items() if name in kept}
    head = head_of(config_of(base, readout), len(LABELS) if readout == "linear" else 1)
    return HeadObjective(base.model, lora, head, n_train=10, precision=precision)


def rows_of(base: BaseModel, readout: str) -> list[LabelledRow]:
    two = packed(base, TEXTS[1], readout, ("maybe", "no"))
    return [
        LabelledRow(packed(base, TEXTS[0], readout), 1),
        LabelledRow(two, 0),
        LabelledRow(packed(base, TEXTS[2], readout), 2),
    ]


def loss_of(objective: HeadObjective, rows: Sequence[LabelledRow]) -> torch.Tensor:
    inputs = objective.collate(rows)
    return objective(inputs["batch"], inputs["labels"]).total


def wander(objective: HeadObjective) -> None:
    """Move every trained parameter away from its start."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in objective.trained.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))


def test_the_label_of_a_subset_of_fixed_choices_is_its_place_among_all() -> None:
    base = tiny_base()
    inputs = objective_of(base, "linear").collate(rows_of(base, "linear"))
    assert inputs["labels"].tolist() == [1, LABELS.index("maybe"), 2]
    assert all(isinstance(row, PackedRow) for row in inputs["batch"])
    assert objective_of(base, "pointer").collate(rows_of(base, "pointer"))["labels"].tolist() == [1, 0, 2]


@pytest.mark.parametrize("readout", READOUTS)
def test_the_loss_is_the_cross_entropy_and_the_penalty(readout: str) -> None:
    base = tiny_base()
    objective = objective_of(base, readout, precision=3.0)
    wander(objective)
    rows = rows_of(base, readout)[:1]  # all choices, so that a softmax over the outputs is one over the choices
    weights = objective.trained.head
    head = replace(objective.head, weight=weights["weight"], bias=weights["bias"])
    draws = head.mean(objective.trained.lora.mean())
    features = read_rows(base.model, [row.row for row in rows], head.config, draws.lora)
    expected = -head_log_probs(draws, [row.row for row in rows], features)[0, 0, rows[0].label]
    expected = expected + 3.0 * weights["weight"].square().sum() / 2 / 10
    torch.testing.assert_close(loss_of(objective, rows), expected)


@pytest.mark.parametrize("readout", READOUTS)
def test_only_the_lora_and_the_weights_of_the_states_learn(readout: str) -> None:
    base = tiny_base()
    objective = objective_of(base, readout)
    wander(objective)
    loss_of(objective, rows_of(base, readout)).backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in objective.trained.lora.parameters())
    assert objective.trained.head["weight"].grad.any()
    assert all(parameter.grad is None for parameter in base.model.parameters())


@pytest.mark.parametrize("readout", READOUTS)
def test_the_weights_start_at_zero_and_the_lora_changes_nothing(readout: str) -> None:
    base = tiny_base()
    objective = objective_of(base, readout)
    assert not objective.trained.head["weight"].any()
    assert not any(factors.B.any() for factors in objective.trained.lora.mean().factors.values())


@pytest.mark.parametrize("readout", READOUTS)
def test_rows_with_the_frozen_layers_states_have_the_same_loss(readout: str) -> None:
    base = tiny_base()
    objective = objective_of(base, readout, layers=(1,))
    wander(objective)
    rows = rows_of(base, readout)
    known = with_states(base.model, rows, 1)
    assert all(row.row.states is not None for row in known)
    torch.testing.assert_close(loss_of(objective, known), loss_of(objective, rows), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("readout", READOUTS)
def test_validation_sees_what_training_changed(readout: str) -> None:
    base = tiny_base()
    objective, rows = objective_of(base, readout), rows_of(base, readout)
    before = objective.log_probs(rows, 4)
    assert before.shape == (1, 3, 3)
    assert before[0, 1, 2] == -torch.inf  # the second question has two choices
    wander(objective)
    assert (objective.log_probs(rows, 4) - before)[0, 0].abs().max() > 0.01


@pytest.mark.parametrize("readout", READOUTS)
def test_steps_of_the_optimiser_lower_the_loss(readout: str, tmp_path: Path) -> None:
    base = tiny_base()
    objective, rows = objective_of(base, readout), rows_of(base, readout)
    optimizer = make_optimizer(objective.trained, toy_config(tmp_path, lora_learning_rate=0.01, head_learning_rate=0.1))
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = loss_of(objective, rows)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]


@pytest.mark.parametrize("readout", READOUTS)
def test_a_checkpoint_brings_the_directions_that_its_weights_belong_to(readout: str) -> None:
    base = tiny_base()
    objective, rows = objective_of(base, readout), rows_of(base, readout)
    wander(objective)
    again = objective_of(base, readout)
    fitted = again.head
    flipped = {name: -tensor for name, tensor in fitted.tensors().items() if name.endswith("directions")}
    own = {name: tensor.clone() for name, tensor in flipped.items()}
    again = HeadObjective(base.model, again.trained.lora, replace(fitted, **flipped), n_train=10, precision=0.0)
    again.trained.load_state_dict(objective.trained.state_dict())
    assert torch.equal(again.log_probs(rows, 1), objective.log_probs(rows, 1))
    assert all(torch.equal(tensor, own[name]) for name, tensor in flipped.items())


@pytest.mark.parametrize("readout", READOUTS)
def test_a_checkpoint_holds_all_that_the_mean_of_the_head_reads(readout: str) -> None:
    objective = objective_of(tiny_base(), readout)
    held = {name.rpartition(".")[2] for name in objective.trained.state_dict() if not name.startswith("lora.")}
    assert held == objective.head.tensors().keys() - {"deviation", "basis"}
    rates = make_optimizer(objective.trained, toy_config(Path()))
    n_learned = sum(len(group["params"]) for group in rates.param_groups)
    assert n_learned == len(list(objective.trained.lora.parameters())) + 2
