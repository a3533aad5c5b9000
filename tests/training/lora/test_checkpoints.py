import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from blora.errors import ConfigError
from blora.training.lora.checkpoints import check_apart, claimed, last_complete
from tests.training.lora.test_trainer import Killed, assert_same, kill_after, run, states

RUN = {"seed": 0, "epochs": 2}


def checkpoint(work_dir: Path, step: int, state: str | None = "{}") -> Path:
    folder = work_dir / f"checkpoint-{step}"
    folder.mkdir()
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def claim(work_dir: Path, run: dict[str, Any], *, resume: bool) -> Path | None:
    """Claim the folder for a run that is interrupted at once."""
    with suppress(KeyboardInterrupt), claimed(work_dir, run, resume=resume) as found:
        raise KeyboardInterrupt
    return found


def test_a_new_run_begins(tmp_path: Path) -> None:
    assert claim(tmp_path / "work", RUN, resume=False) is None
    assert claim(tmp_path / "other", RUN, resume=True) is None


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    claim(tmp_path / "work", RUN, resume=False)
    checkpoint(tmp_path / "work", 9)
    newest = checkpoint(tmp_path / "work", 10)
    assert claim(tmp_path / "work", RUN, resume=True) == newest


@pytest.mark.parametrize("state", [None, '{"step": 1'])
def test_a_checkpoint_in_pieces_is_passed_over(tmp_path: Path, state: str | None) -> None:
    whole = checkpoint(tmp_path, 4)
    checkpoint(tmp_path, 8, state)
    assert last_complete(tmp_path) == whole


def test_without_a_whole_checkpoint_there_is_nothing_to_go_on_from(tmp_path: Path) -> None:
    checkpoint(tmp_path, 8, None)
    assert last_complete(tmp_path) is None


@pytest.mark.parametrize("resume", [True, False])
def test_the_checkpoints_of_another_run_are_refused(tmp_path: Path, resume: bool) -> None:
    claim(tmp_path / "work", RUN, resume=False)
    with pytest.raises(ConfigError, match="work of a run with other settings"):
        claim(tmp_path / "work", RUN | {"epochs": 3}, resume=resume)


def test_an_unfinished_run_is_not_begun_again_by_accident(tmp_path: Path) -> None:
    claim(tmp_path / "work", RUN, resume=False)
    with pytest.raises(ConfigError, match="unfinished run; pass --resume"):
        claim(tmp_path / "work", RUN, resume=False)


def test_a_folder_with_other_things_is_refused_and_untouched(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("irreplaceable")
    with pytest.raises(ConfigError, match="which holds other files"):
        claim(tmp_path, RUN, resume=True)
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_finished_run_leaves_nothing(tmp_path: Path) -> None:
    with claimed(tmp_path / "work", RUN, resume=False):
        checkpoint(tmp_path / "work", 1)
    assert list(tmp_path.iterdir()) == []


def test_what_a_finished_run_did_not_write_stays(tmp_path: Path) -> None:
    with claimed(tmp_path / "work", RUN, resume=False):
        checkpoint(tmp_path / "work", 1)
        for name in ("thesis.txt", "checkpoint-notes.txt"):
            (tmp_path / "work" / name).write_text("irreplaceable")
    assert {path.name for path in (tmp_path / "work").iterdir()} == {"thesis.txt", "checkpoint-notes.txt"}


@pytest.mark.parametrize("resume", [True, False])
def test_the_folder_of_a_run_that_goes_on_is_refused(tmp_path: Path, resume: bool) -> None:
    with claimed(tmp_path / "work", RUN, resume=False):
        first = checkpoint(tmp_path / "work", 1)
        with (
            pytest.raises(ConfigError, match="another run is using, expected one run at a time"),
            claimed(tmp_path / "work", RUN, resume=resume),
        ):
            pytest.fail("two runs have one folder")
        assert first.is_dir()
    assert list(tmp_path.iterdir()) == []


def test_a_run_whose_folder_cannot_be_locked_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with claimed(tmp_path / "work", RUN, resume=False) as found:
        assert found is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("work", "output"), [("a", "a"), ("a", "a/b"), ("a/b", "a"), (".", "a"), ("c/../a", "a/b/c")])
def test_a_work_folder_and_an_output_lie_apart(tmp_path: Path, work: str, output: str) -> None:
    with pytest.raises(ConfigError, match="one contains the other, expected separate folders"):
        check_apart(tmp_path / work, tmp_path / output)
    check_apart(tmp_path / "a.work", tmp_path / "a")


def test_the_best_epoch_of_a_folder_that_was_moved_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"flipped": True, "epochs": 3, "learning_rate": 3e-2, "form": "lora", "warmup": 0.0}
    whole, _ = run(tmp_path / "whole", **settings)
    with monkeypatch.context() as patch:
        kill_after(3, patch)  # between the last epoch and the end
        with pytest.raises(Killed):
            run(tmp_path / "parts", **settings)
    (tmp_path / "parts").rename(tmp_path / "moved")
    resumed, _ = run(tmp_path / "moved", resume=True, **settings)
    last = max(states(tmp_path / "moved"))
    assert states(tmp_path / "moved")[last]["best_global_step"] < last
    assert_same(resumed, whole)


def test_a_run_that_had_stopped_early_is_not_trained_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings: dict[str, Any] = {"n_train": 16, "flipped": True, "epochs": 9, "patience": 2}
    settings |= {"form": "lora", "warmup": 0.0, "lora_learning_rate": 3e-2}
    whole, _ = run(tmp_path / "whole", **settings)
    steps = max(states(tmp_path / "whole"))
    assert steps < 9 * 4
    with monkeypatch.context() as patch:
        kill_after(steps // 4, patch)
        with pytest.raises(Killed):
            run(tmp_path / "parts", **settings)
    resumed, _ = run(tmp_path / "parts", resume=True, **settings)
    assert max(states(tmp_path / "parts")) == steps
    assert_same(resumed, whole)
