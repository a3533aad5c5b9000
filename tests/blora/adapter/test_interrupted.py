"""Adapters whose rewriting was interrupted: the error says how to finish it, and whoever does so has the new adapter."""

import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import load_adapter, read_config
from blora.adapter.opening import base_model_of, check_lora_base
from blora.base_model import BaseModel
from blora.cli import main
from blora.errors import AdapterError
from blora.training.rows.overlap import seen_by
from tests.blora.adapters import adapter_config, contents, saved


def interrupt(folder: Path, base: BaseModel, n_moves: int, **form: Any) -> None:
    """Write an adapter, and end after some moves: of the old config, and of files out of the hidden folder."""
    move, left = Path.replace, n_moves

    def replace(source: Path, target: Path) -> Path:
        nonlocal left
        if left == 0:
            raise KeyboardInterrupt
        left -= 1
        return move(source, target)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        with pytest.raises(KeyboardInterrupt):
            saved(folder, base, **form)


def told(folder: Path) -> str:
    with pytest.raises(AdapterError) as caught:
        read_config(folder)
    return str(caught.value)


def hidden(folder: Path) -> set[Path]:
    return set(folder.glob(f".partial-{folder.name}-*"))


def follow(message: str) -> None:
    """Do what an error message says, with the names that it gives."""
    found = re.search(r"move the files of (\S+) into (\S+), (\S+) last, and remove (\S+), which", message)
    assert found is not None
    rest, folder, last, spent = found.groups()
    for file in sorted(Path(rest).iterdir(), key=lambda file: file.name == last):
        shutil.move(file, Path(folder) / file.name)
    (Path(folder) / spent).unlink()


@pytest.mark.parametrize("n_moves", range(1, 6))
def test_whoever_does_what_the_error_says_has_the_new_adapter(
    n_moves: int, folder: Path, llama: BaseModel, tmp_path: Path
) -> None:
    saved(tmp_path / "elsewhere" / "triage", llama, method="lora")
    interrupt(folder, llama, n_moves, method="lora")
    message = told(folder)
    assert f"got adapter {folder} without bayesian_config.json, because a write of it was interrupted" in message
    assert "expected one that is finished" in message
    follow(message)
    new, expected = load_adapter(folder, llama), load_adapter(tmp_path / "elsewhere" / "triage", llama)
    assert (new.digest, new.config) == (expected.digest, adapter_config(llama, method="lora"))
    assert contents(folder) == contents(expected.path)


def test_the_hidden_folder_that_changed_last_is_named(folder: Path, llama: BaseModel) -> None:
    interrupt(folder, llama, 3, method="lora")
    [first] = hidden(folder)
    interrupt(folder, llama, 2, method="lora", rank=2)
    [second] = hidden(folder) - {first}
    for age, partial in enumerate((second, first)):
        os.utime(partial, ns=(0, 10**9 - age))
    without_settings = folder / ".partial-triage-begun"
    without_settings.mkdir()
    of_triage_two = shutil.copytree(second, folder / ".partial-triage-two-abc")
    os.utime(of_triage_two)
    message = told(folder)
    assert f"move the files of {second} into" in message
    follow(message)
    assert load_adapter(folder, llama).config == adapter_config(llama, method="lora", rank=2)


def test_without_the_hidden_folder_only_training_helps(folder: Path, llama: BaseModel) -> None:
    interrupt(folder, llama, 2, method="lora")
    [rest] = hidden(folder)
    shutil.rmtree(rest)
    message = told(folder)
    assert "train again into the same folder, because no folder .partial-triage-* with the new files was" in message
    assert "move the files" not in message
    saved(folder, llama, method="lora")
    assert load_adapter(folder, llama).config.posterior.method == "lora"


@pytest.mark.parametrize("begun", [base_model_of, seen_by, check_lora_base], ids=lambda function: function.__name__)
def test_nobody_begins_with_what_is_half_written_as_with_a_plain_lora(
    begun: Callable[..., object], folder: Path, llama: BaseModel
) -> None:
    interrupt(folder, llama, 2, method="lora")
    with pytest.raises(AdapterError, match="because a write of it was interrupted"):
        begun(folder, llama) if begun is check_lora_base else begun(folder)


def test_what_is_half_written_is_not_made_bayesian(
    folder: Path, llama: BaseModel, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    interrupt(folder, llama, 2, method="lora")
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "a", "choices": ["b", "c"], "label": 0}\n' * 8)
    assert main(["bayesianize", str(folder), "--data", str(rows), "--output", str(tmp_path / "made")]) == 1
    assert "because a write of it was interrupted" in capsys.readouterr().err


def test_in_a_folder_that_cannot_be_listed_no_hidden_one_is_found(
    folder: Path, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(folder, llama, 2, method="lora")

    def refused(_: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(Path, "iterdir", refused)
    assert "no folder .partial-triage-* with the new files was found in it" in told(folder)


def test_the_error_names_the_folder_behind_a_dot_or_a_link(
    folder: Path, llama: BaseModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    interrupt(folder, llama, 2, method="lora")
    (tmp_path / "served").symlink_to(folder)
    monkeypatch.chdir(folder)
    expected = told(folder)
    assert "move the files of " in expected
    assert told(tmp_path / "served") == expected
    assert told(Path()) == expected


def test_the_card_of_an_adapter_that_is_written_to_a_dot_has_the_folders_name(
    folder: Path, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = (folder / "README.md").read_text()
    assert "\n# triage\n" in expected
    monkeypatch.chdir(folder)
    saved(Path(), llama)
    assert (folder / "README.md").read_text() == expected
