"""Files and folders that appear whole or not at all."""

import os
import stat
from glob import glob
from pathlib import Path

import pytest

from blora.disk.atomic import new_folder, remove_abandoned, write_file


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_a_file_takes_the_place_of_another_and_everybody_may_read_it(tmp_path: Path) -> None:
    for text in ("old", "new ✓"):
        write_file(tmp_path / "file", text)
        assert (tmp_path / "file").read_text(encoding="utf-8") == text
    assert modes(tmp_path) == {"file": 0o644}


def test_a_file_that_cannot_be_prepared_leaves_the_old_one(tmp_path: Path) -> None:
    write_file(tmp_path / "file", "old")

    def fail(descriptor: int) -> None:
        raise PermissionError("not yours")

    with pytest.raises(PermissionError):
        write_file(tmp_path / "file", "new", prepare=fail)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"file": "old"}


def test_a_folder_is_hidden_until_it_is_complete(tmp_path: Path) -> None:
    with new_folder(tmp_path / "some" / "folder") as partial:
        (partial / "inner").mkdir(mode=0o700)
        (partial / "inner" / "file").write_text("text")
        assert [path.name.startswith(".partial-folder-") for path in (tmp_path / "some").iterdir()] == [True]
    assert os.listdir(tmp_path / "some") == ["folder"]
    assert modes(tmp_path / "some") == {"folder": 0o755, "folder/inner": 0o755, "folder/inner/file": 0o644}


def test_a_folder_is_on_the_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[tuple[int, bool]] = []
    monkeypatch.setattr(
        os, "fsync", lambda opened: flushed.append((os.fstat(opened).st_ino, (tmp_path / "folder").exists()))
    )
    with new_folder(tmp_path / "folder") as partial:
        (partial / "inner").mkdir()
        (partial / "inner" / "file").write_text("text")
    folder = tmp_path / "folder"
    written = {path.stat().st_ino for path in (folder / "inner" / "file", folder / "inner", folder)}
    assert {inode for inode, named in flushed if not named} == written
    assert [inode for inode, named in flushed if named] == [tmp_path.stat().st_ino]


def test_a_folder_that_fails_leaves_nothing(tmp_path: Path) -> None:
    def interrupted() -> None:
        with new_folder(tmp_path / "folder") as partial:
            (partial / "file").touch()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "taken").touch()
    with pytest.raises(OSError, match="not empty"), new_folder(tmp_path / "folder") as partial:
        (partial / "file").touch()
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")) == ["folder", "folder/taken"]


def test_a_place_of_its_own_gets_the_complete_folder_and_keeps_it_where_it_fails(tmp_path: Path) -> None:
    def fail(partial: Path, folder: Path) -> None:
        raise OSError(f"{sorted(os.listdir(partial))} do not fit into {folder.name}")

    with (
        pytest.raises(OSError, match=r"\['file'\] do not fit into folder"),
        new_folder(tmp_path / "folder", place=fail) as partial,
    ):
        (partial / "file").touch()
    assert (partial / "file").is_file()


def test_a_folder_left_behind_is_removed_a_day_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (".partial-old", ".partial-at-work", "old"):
        (tmp_path / name).mkdir()
        if name.endswith("old"):
            os.utime(tmp_path / name, (0, 0))
    completed = tmp_path / ".partial-completed"
    monkeypatch.setattr(Path, "glob", lambda self, pattern: [completed, *map(Path, glob(f"{self}/{pattern}"))])
    remove_abandoned(tmp_path)
    assert sorted(os.listdir(tmp_path)) == [".partial-at-work", "old"]
