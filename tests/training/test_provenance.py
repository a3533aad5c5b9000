import os
import shlex
from importlib.metadata import version
from pathlib import Path

import pytest
import torch

from blora.training import provenance
from blora.training.provenance import command_line, machine, revision
from tests.training.conftest import REVISION


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for git that answers with the files `head` and `status` beside it, and fails without `head`."""
    monkeypatch.delenv("BLORA_REVISION")
    program = tmp_path / "git"
    program.write_text(
        f'#!/bin/sh\ncase "$1" in\n'
        f'rev-parse) case "$2" in --show-toplevel) cat "{tmp_path}/top";; *) cat "{tmp_path}/head" || exit 128;; esac;;\n'
        f'status) cat "{tmp_path}/status";;\nesac\n'
    )
    program.chmod(0o755)
    (tmp_path / "top").write_text(str(Path(provenance.__file__).resolve().parents[1]))
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    return tmp_path


def test_a_given_revision_wins() -> None:
    assert revision() == REVISION


def test_a_clean_tree_is_its_commit(git: Path) -> None:
    (git / "head").write_text("abcdef012345\n")
    (git / "status").write_text("")
    assert revision() == "abcdef012345"


def test_a_changed_tree_is_marked(git: Path) -> None:
    (git / "head").write_text("abcdef012345\n")
    (git / "status").write_text(" M README.md\n")
    assert revision() == "abcdef012345+"


@pytest.mark.usefixtures("git")
def test_outside_git_the_revision_is_unknown() -> None:
    assert revision() == "unknown"


def test_without_git_the_revision_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BLORA_REVISION")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert revision() == "unknown"


def test_the_machine_names_the_libraries_that_matter() -> None:
    found = machine()
    assert found["cores"] == os.cpu_count()
    assert found["processor"]
    assert found["system"]
    assert (found["torch"], found["transformers"]) == (torch.__version__, version("transformers"))


def test_an_accelerator_is_named_where_the_run_is_on_one_and_is_never_the_processor(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: f"Tesla of {device}")
    for device in (None, torch.device("cpu")):
        assert "accelerator" not in machine(device)
    found = machine(torch.device("cuda:1"))
    assert found["accelerator"] == "Tesla of cuda:1"
    assert {machine(device)["processor"] for device in (None, torch.device("cpu"))} == {found["processor"]}
    assert "Tesla" not in str(found["processor"])
    assert machine(torch.device("mps"))["accelerator"] == "mps"


def test_the_command_line_can_be_pasted() -> None:
    argv = ["a b", "--template", "Q: {prompt}\nA:", "--choices", "yes|no", "it's"]
    line = command_line("train", argv)
    assert shlex.split(line) == ["blora", "train", *argv]


def test_a_repository_around_the_installation_is_not_ours(git: Path) -> None:
    (git / "head").write_text("abcdef012345")
    (git / "status").write_text("")
    (git / "top").write_text("/somewhere/else")
    assert revision() == "unknown"
