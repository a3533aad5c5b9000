"""Rows with cached trunk states score and train like rows without."""

import errno
import os
import shutil
from pathlib import Path

import pytest
import torch

from blora.base_model import BaseModel
from blora.config import PosteriorConfig
from blora.inference.batches import collate
from blora.inference.branches import score_all
from blora.inference.fork import forbid_partial_runs
from blora.inference.scoring import states_of
from blora.posterior.inject import default_targets, inject, select_modules
from blora.posterior.posterior import Posterior
from blora.training.lora import trainer, trunk
from blora.training.lora.trainer import fit
from blora.training.lora.trunk import with_states
from blora.training.rows.packed import LabelledRow
from tests.scenarios import N_LAYERS, random_draws, random_rows, tiny_base
from tests.training.toys import labelled, toy_config, toy_data


def above(base: BaseModel, layer: int = 1) -> dict[str, tuple[int, int]]:
    return select_modules(base.model, default_targets(base.model), range(layer, N_LAYERS))


def rows() -> list[LabelledRow]:
    return [LabelledRow(row, 0) for row in random_rows(20)]


def test_each_row_gets_its_own_states(base: BaseModel) -> None:
    for row in with_states(base.model, rows(), 1):
        states = row.row.states
        assert states is not None
        alone = states_of(base.model, collate([row.row]), 1).values[0]
        torch.testing.assert_close(states.values, alone, rtol=0, atol=1e-5)


def test_rows_with_states_score_as_rows_without(base: BaseModel) -> None:
    modules = above(base)
    inject(base.model, modules)
    draws = random_draws(modules, 3, scaling=0.7)
    plain = [row.row for row in rows()]
    known = [row.row for row in with_states(base.model, rows(), 1)]
    slow = score_all(base.model, plain, draws, max_batch_tokens=200)
    for budget in (50, 200, 5000):
        fast = score_all(base.model, known, draws, max_batch_tokens=budget)
        torch.testing.assert_close(fast, slow, rtol=0, atol=1e-4)


def test_beyond_a_size_the_states_lie_in_a_file(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = with_states(base.model, rows(), 1)
    monkeypatch.setattr(trunk, "MEMORY_VALUES", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for row, wanted in zip(with_states(base.model, rows(), 1), expected, strict=True):
        assert row.row.states is not None
        assert wanted.row.states is not None
        torch.testing.assert_close(row.row.states.values, wanted.row.states.values, rtol=0, atol=0)
    assert not list(tmp_path.iterdir())  # it vanishes with the process


def without_room(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: int = errno.ENOSPC) -> None:
    """Send the states to a file, and let the disk fill up while space for the file is reserved."""

    def full(handle: int, offset: int, length: int) -> None:
        os.ftruncate(handle, length)
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(trunk, "MEMORY_VALUES", 10)
    monkeypatch.setattr(trunk, "SPARE_BYTES", 0)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setattr(os, "posix_fallocate", full)


def assert_unchanged(base: BaseModel, caplog: pytest.LogCaptureFixture, reason: str) -> None:
    given = rows()
    assert with_states(base.model, given, 1) == given
    [record] = caplog.records
    assert (record.name, record.levelname) == ("blora.training.lora.trunk", "WARNING")
    expected = "the 1 layers below the adapted ones run in every step: their output for 20 rows takes"
    assert record.getMessage().startswith(expected)
    assert record.getMessage().endswith(reason)


def test_a_disk_that_fills_leaves_the_rows_as_they_are_and_no_file(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    without_room(monkeypatch, tmp_path)
    assert_unchanged(base, caplog, "GiB, but No space left on device")
    assert not list(tmp_path.iterdir())


def test_a_disk_with_too_little_room_is_not_written_to(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trunk, "MEMORY_VALUES", 10)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    usage = shutil.disk_usage(tmp_path)._replace(free=trunk.SPARE_BYTES)
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: usage)
    monkeypatch.setattr("tempfile.mkstemp", None)
    assert_unchanged(base, caplog, f"GiB, but {tmp_path} has 1 GiB free")


def test_a_system_that_reserves_no_room_goes_without_a_file(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(trunk, "MEMORY_VALUES", 10)
    monkeypatch.delattr(os, "posix_fallocate")
    assert_unchanged(base, caplog, "this system cannot reserve disk space for a file")


def test_the_file_is_allocated_before_it_is_mapped(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    allocated = []
    really = os.posix_fallocate

    def allocate(handle: int, offset: int, length: int) -> None:
        really(handle, offset, length)
        allocated.append(os.fstat(handle).st_blocks * 512 >= length)

    without_room(monkeypatch, tmp_path)
    monkeypatch.setattr(os, "posix_fallocate", allocate)
    assert all(row.row.states is not None for row in with_states(base.model, rows(), 1))
    assert allocated == [True]


def test_states_beyond_the_limit_are_not_computed(
    base: BaseModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    given = rows()
    needed = sum(row.row.n_tokens for row in given) * base.model.config.hidden_size * 4 / 2**30
    assert all(row.row.states is not None for row in with_states(base.model, given, 1, needed))
    monkeypatch.setattr(trunk, "trunk_states", None)
    assert with_states(base.model, given, 1, 0.99 * needed) == given
    assert "GiB, but the limit is" in caplog.text


def test_training_obeys_the_limit(tmp_path: Path, base: BaseModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trunk, "trunk_states", None)
    posterior = Posterior(above(base), PosteriorConfig(rank=2, inducing_rows=3, inducing_cols=3), 0)
    data = labelled(base, toy_data(8))
    fit(base, posterior, data, data, toy_config(tmp_path / "work", epochs=1, trunk_cache_gib=0))


def test_states_that_are_there_are_kept(base: BaseModel) -> None:
    first = with_states(base.model, rows(), 1)
    again = with_states(base.model, first, 1)
    assert all(a.row.states is b.row.states for a, b in zip(first, again, strict=True))
    assert all(row.row.states is None for row in with_states(base.model, rows(), 0))


def test_rows_of_a_model_kept_whole_get_no_states(base: BaseModel) -> None:
    forbid_partial_runs(base.model, "a test")
    assert all(row.row.states is None for row in with_states(base.model, rows(), 1))


@pytest.mark.parametrize("method", ["lora", "bayesian"])
def test_training_on_states_is_training_without(method: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    results = []
    for name in ("with", "without"):
        base = tiny_base()
        if name == "without":
            monkeypatch.setattr(trainer, "with_states", lambda model, rows, *rest: list(rows))
        config = PosteriorConfig(method=method, rank=2, inducing_rows=3, inducing_cols=3)  # type: ignore[arg-type]
        posterior = Posterior(above(base), config, 0)
        data = labelled(base, toy_data(12))
        fit(base, posterior, data, data, toy_config(tmp_path / name))
        results.append(posterior.state_dict())
    for key, value in results[0].items():
        torch.testing.assert_close(value, results[1][key], rtol=1e-3, atol=1e-4)
