"""A run from its beginning: the work folder that it claims, and the LoRA that it starts from."""

from pathlib import Path
from typing import Any

import pytest

from blora.adapter import read_config
from blora.adapter.lora import lora_shape
from blora.errors import ConfigError
from blora.training.commands.train import main
from blora.training.recipe import recipe_of
from tests.loras import make_lora
from tests.training.toys import train_arguments

ALL = {f"model.layers.{layer}.self_attn.{name}" for layer in (0, 1) for name in ("q_proj", "v_proj")}


@pytest.fixture
def lora(tmp_path: Path) -> Path:
    """A LoRA that PEFT made on query and value projections."""
    return make_lora(tmp_path / "lora")


def arguments(base: Path, data: Path, output: Path, head: str, *more: str) -> list[str]:
    """Arguments for a LoRA of the size of the one by PEFT, below a head or without one."""
    without_inducing = ("--inducing-rows", "9", "--inducing-cols", "9", "--rank", "3", "--alpha", "6")
    return train_arguments(base, data, output, "--head", head, *without_inducing, "--epochs", "1", *more)


# The work folder


@pytest.mark.parametrize("head", ["pointer", "none"])
def test_a_work_folder_of_others_is_refused_before_any_training(
    head: str, tmp_path: Path, base_folder: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def late(*_: Any, **__: Any) -> None:
        raise AssertionError("training has started")

    for trained in ("train_head", "fit"):
        monkeypatch.setattr(f"blora.training.run.{trained}", late)
    work_dir = tmp_path / "toy.work"
    work_dir.mkdir()
    (work_dir / "thesis.txt").write_text("irreplaceable")
    given = arguments(base_folder, toy_file, tmp_path / "toy", head, "--layers", "all")
    with pytest.raises(ConfigError, match="toy.work, which holds other files"):
        main(given)
    (work_dir / "thesis.txt").rename(work_dir / "run.json")
    with pytest.raises(ConfigError, match=r"toy.work of a run with other settings"):
        main(given)


# The modules to adapt


def test_modules_that_are_named_need_no_default(
    tmp_path: Path, base_folder: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blora.training.start.default_targets", lambda _: pytest.fail("the default was asked for"))
    chosen = ("--target-modules", "q_proj,o_proj")
    assert main(arguments(base_folder, toy_file, tmp_path / "toy", "none", *chosen)) == 0
    assert read_config(tmp_path / "toy").target_modules == ("q_proj", "o_proj")


# The LoRA to start from


@pytest.mark.parametrize("head", ["pointer", "none"])
def test_the_modules_are_those_of_the_lora_to_start_from(
    head: str, lora: Path, tmp_path: Path, base_folder: Path, toy_file: Path
) -> None:
    start = ("--init-from", str(lora))
    assert main(arguments(base_folder, toy_file, tmp_path / "toy", head, *start)) == 0
    config = read_config(tmp_path / "toy")
    if head == "none":
        assert config.modules.keys() == ALL
        assert config.target_modules == ("q_proj", "v_proj")
    else:
        assert any(name.endswith("above a LoRA") for name in config.training["parts"])


def test_a_lora_in_some_layers_is_started_from_again(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    chosen = ("--method", "lora", "--layers", "last:1", "--target-modules", "q_proj,o_proj")
    assert main(arguments(base_folder, toy_file, tmp_path / "lora", "none", *chosen)) == 0
    for name, more in {"left-out": (), "repeated": chosen[2:], "in-part": chosen[4:]}.items():
        start = ("--init-from", str(tmp_path / "lora"), *more)
        assert main(arguments(base_folder, toy_file, tmp_path / name, "none", *start)) == 0
        modules = read_config(tmp_path / name).modules
        assert modules == lora_shape(tmp_path / "lora").modules
        assert modules.keys() == {f"model.layers.1.self_attn.{name}" for name in ("q_proj", "o_proj")}


@pytest.mark.parametrize("head", ["pointer", "none"])
@pytest.mark.parametrize(
    "more",
    [("--layers", "last:1"), ("--target-modules", "q_proj"), ("--target-modules", "q_proj,k_proj,v_proj")],
    ids=["layers", "fewer", "more"],
)
def test_other_modules_than_those_of_the_lora_are_refused(
    head: str, more: tuple[str, ...], lora: Path, tmp_path: Path, base_folder: Path, toy_file: Path
) -> None:
    given = arguments(base_folder, toy_file, tmp_path / "toy", head, "--init-from", str(lora), *more)
    said = r"--target-modules or --layers than .*lora, which adapts q_proj, v_proj in layers \[0, 1\]; leave both flags"
    with pytest.raises(ConfigError, match=said):
        main(given)
    assert not (tmp_path / "toy.work").exists()


@pytest.mark.parametrize(("work", "output"), [("runs", "runs/a"), ("b", "b"), ("c/work", "c")])
def test_a_work_folder_around_or_inside_the_output_is_refused_before_training(
    tmp_path: Path, base_folder: Path, toy_file: Path, work: str, output: str
) -> None:
    arguments = train_arguments(base_folder, toy_file, tmp_path / output, "--work-dir", str(tmp_path / work))
    with pytest.raises(ConfigError, match="one contains the other, expected separate folders"):
        main(arguments)
    assert list(tmp_path.iterdir()) == []


def test_the_work_folder_of_the_folder_that_one_is_in_lies_beside_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    assert recipe_of([], Path(), command="", base_model="tiny").training.work_dir == tmp_path / "here.work"
