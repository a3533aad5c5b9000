"""The distance against a dense Gaussian, p-values against their definition, and sizes."""

import math
from dataclasses import replace
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from blora.config import FamiliarityConfig, FamiliarityKind
from blora.decision.familiarity import MOST_BYTES, Familiarity, familiarity_shapes, p_value, stored_bytes
from blora.decision.guesses import SHARE
from blora.errors import ConfigError, ShapeError

CONFIG = FamiliarityConfig(kind="both", depths=(1, 2), n_states=12, n_low=6, n_directions=2, n_axes=3, n_labels=4)


def familiarity(kind: FamiliarityKind = "both", sharpness: float | None = None) -> Familiarity:
    generator = torch.Generator().manual_seed(0)

    def noise(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    return Familiarity(
        replace(CONFIG, kind=kind, sharpness=sharpness),
        center=noise(12),
        scale=noise(12).abs() + 0.5,
        directions=torch.linalg.qr(noise(6, 2))[0].T.half().float(),
        variances=torch.tensor([3.0, 2.0]),
        residual=torch.tensor([0.5]),
        axes=noise(3, 12).half().float(),
        labels=torch.nn.functional.normalize(noise(4, 3), dim=-1),
        middle=torch.tensor([1.0, -0.5]),
        spread=torch.tensor([0.5, 0.2]),
        reference=torch.tensor([0.25]),
    )


def states(n: int, seed: int = 1) -> Tensor:
    return 3 * torch.randn(n, 12, generator=torch.Generator().manual_seed(seed))


def test_the_distance_of_the_gaussian_is_the_dense_mahalanobis_distance() -> None:
    found = familiarity("gaussian")
    Q = found.directions.double()
    covariance = Q.T @ torch.diag(found.variances.double()) @ Q + 0.5 * (torch.eye(6) - Q.T @ Q)
    x = ((states(50) - found.center) / found.scale).double()[:, :6]
    dense = (x @ torch.linalg.inv(covariance) * x).sum(-1)
    torch.testing.assert_close(
        found.parts(states(50))[:, 0].exp().double(), dense, rtol=2e-3, atol=1e-3
    )  # Q in 16 bits
    torch.testing.assert_close(found.distance(states(50)).double(), (dense.log() - 1) / 0.5, rtol=5e-3, atol=5e-3)


@pytest.mark.parametrize("sharpness", [None, 1.0, 7.0, 1000.0])
def test_the_distance_of_the_direction_is_a_soft_maximum_of_the_cosines_with_labels(sharpness: float | None) -> None:
    found = familiarity("direction", sharpness)
    for row, distance in zip(states(20), found.distance(states(20)), strict=True):
        on_axes = found.axes @ ((row - found.center) / found.scale)
        cosines = [float(on_axes @ label / on_axes.norm()) for label in found.labels]
        most = max(cosines)
        k = sharpness if sharpness is not None else 1e6
        expected = most + math.log(sum(math.exp(k * (cosine - most)) for cosine in cosines)) / k
        assert float(distance) == pytest.approx((-expected + 0.5) / 0.2, abs=1e-4)


def test_both_parts_add_up_and_the_cosine_is_that_of_the_share_on_the_axes() -> None:
    both, gaussian, direction = familiarity("both"), familiarity("gaussian"), familiarity("direction")
    asked = states(20)
    share = (((asked - both.center) / both.scale) @ both.axes.T).norm(dim=-1) / both.parts(asked)[:, 0].exp().sqrt()
    expected = gaussian.distance(asked) + (direction.parts(asked)[:, 1] * share + 0.5) / 0.2
    torch.testing.assert_close(both.distance(asked), expected, rtol=1e-4, atol=1e-4)


def with_choices() -> Familiarity:
    """Return a familiarity whose choices have a Gaussian of their own, in other directions."""
    generator = torch.Generator().manual_seed(9)
    return replace(
        familiarity("choices"),
        choice_center=torch.randn(6, generator=generator),
        choice_scale=torch.rand(6, generator=generator) + 0.5,
        choice_directions=torch.linalg.qr(torch.randn(6, 2, generator=generator))[0].T.half().float(),
        choice_variances=torch.tensor([4.0, 1.0]),
        choice_residual=torch.tensor([0.25]),
    )


def test_choices_of_the_question_s_own_add_the_distance_of_theirs() -> None:
    found, prompts, choices = with_choices(), states(20), states(50, seed=2)
    owner = torch.arange(50) % 20  # two or three each
    Q = found.choice_directions.double()
    covariance = Q.T @ torch.diag(found.choice_variances.double()) @ Q + 0.25 * (torch.eye(6) - Q.T @ Q)
    x = ((choices[:, :6] - found.choice_center) / found.choice_scale).double()
    dense = (x @ torch.linalg.inv(covariance) * x).sum(-1).log()
    mean = torch.stack([dense[owner == k].mean() for k in range(20)])
    expected = familiarity("gaussian").distance(prompts) + (mean + 0.5) / 0.2
    torch.testing.assert_close(found.distance(prompts, (choices, owner)).double(), expected, rtol=5e-3, atol=5e-3)
    with pytest.raises(ShapeError, match="11"):
        found.distance(prompts, (choices[:, :11], owner))
    # Without the states of its choices, as where letters stand for them, these are typical.
    torch.testing.assert_close(found.distance(prompts), familiarity("gaussian").distance(prompts))


def test_a_familiarity_of_choices_is_restored_from_what_is_stored() -> None:
    found = with_choices()
    stored = found.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == familiarity_shapes(found.config)
    assert stored["choice_directions"].dtype == torch.float16
    again, choices = Familiarity.of(found.config, stored), (states(9, 2), torch.arange(9))
    torch.testing.assert_close(again.distance(states(9), choices), found.distance(states(9), choices))
    assert "choice_center" not in familiarity("gaussian").tensors()


def test_a_question_has_the_same_distance_alone_and_in_a_batch() -> None:
    found = familiarity()
    together = found.distance(states(16))
    alone = torch.cat([found.distance(row[None]) for row in states(16)])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-4)


def test_a_question_at_the_very_center_has_a_finite_distance_below_that_of_any_other() -> None:
    for kind in get_args(FamiliarityKind):
        found = with_choices() if kind == "choices" else familiarity(kind)
        [center] = found.distance(found.center[None]).tolist()
        assert math.isfinite(center)
        if kind != "direction":
            assert center < float(found.distance(states(20)).min())


def test_answers_are_guesses_beyond_the_distance_alone_where_they_begin() -> None:
    distances = torch.tensor([-1.0, 2.5, 2.5 + 1e-6, 9.0])
    assert not familiarity().guesses(distances).any()
    found = replace(familiarity(), config=replace(CONFIG, guesses_beyond=2.5)).guesses(distances)
    torch.testing.assert_close(found, torch.tensor([0.0, 0.0, SHARE, SHARE]))


def test_stored_tensors_give_the_same_distances() -> None:
    found = familiarity()
    stored = found.tensors()
    assert {name: tuple(tensor.shape) for name, tensor in stored.items()} == familiarity_shapes(CONFIG)
    assert sum(tensor.nbytes for tensor in stored.values()) == stored_bytes(CONFIG)
    torch.testing.assert_close(Familiarity.of(CONFIG, stored).distance(states(9)), found.distance(states(9)))
    with pytest.raises(ShapeError, match="expected"):
        Familiarity.of(CONFIG, stored | {"center": torch.zeros(11)})
    with pytest.raises(ShapeError, match=r"expected \(B, 12\)"):
        found.distance(torch.zeros(3, 11))


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "cosine"},
        {"depths": ()},
        {"n_states": 13},
        {"n_low": 13},
        {"n_directions": 6},
        {"n_axes": 0},
        {"n_labels": 0},
        {"n_labels": 2**20},
        {"sharpness": 0.0},
        {"sharpness": math.nan},
        {"sharpness": 1e9},
    ],
)
def test_sizes_that_do_not_fit_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="expected"):
        replace(CONFIG, **change)


def test_a_wide_model_with_many_labels_fits() -> None:
    wide = FamiliarityConfig(
        kind="both", depths=(1, 2, 3, 4, 5), n_states=20480, n_low=8192, n_directions=64, n_axes=70, n_labels=255
    )
    assert stored_bytes(wide) <= MOST_BYTES


# p-values


@given(st.lists(st.integers(0, 20), min_size=1, max_size=30), st.integers(-2, 22))
def test_a_p_value_is_the_share_of_the_reference_at_least_as_far(reference: list[int], distance: int) -> None:
    expected = (1 + sum(value >= distance for value in reference)) / (len(reference) + 1)
    [found] = p_value(torch.tensor([float(distance)]), torch.tensor(reference).float()).tolist()
    assert found == expected


def test_p_values_are_monotonic_and_at_least_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    p_values = torch.cat(
        [p_value(torch.randn(20, generator=generator), torch.randn(99, generator=generator)) for _ in range(2000)]
    )
    for level in (0.01, 0.05, 0.2, 0.5, 0.9):
        assert float((p_values <= level).double().mean()) <= level + 4 * math.sqrt(level * (1 - level) / 8000)
    assert float((p_values <= 0.5).double().mean()) == pytest.approx(0.5, abs=0.03)
    rising = p_value(torch.linspace(-3, 3, 50), torch.randn(99, generator=generator))
    assert (rising.diff() <= 0).all()
