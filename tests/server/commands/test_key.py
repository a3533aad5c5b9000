"""`blora key`: its output, and the key file before and after."""

import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from blora.errors import ConfigError
from blora.server.commands import key as key_command
from blora.server.commands.key import main
from blora.server.keys import Key, Keys, Scope


@pytest.mark.parametrize(("flags", "scope"), [([], "predict"), (["--admin"], "admin")])
def test_the_command_shows_a_key_and_keeps_its_hash(
    tmp_path: Path, flags: list[str], scope: Scope, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    assert main(["first", "--file", str(file)]) == 0
    capsys.readouterr()
    assert main(["second", "--file", str(file), *flags]) == 0
    [key] = capsys.readouterr().out.split()
    keys = Keys(file)
    assert keys.find(key) == Key("second", scope)
    assert key not in file.read_text()
    assert len(file.read_text().splitlines()) == 2
    assert stat.S_IMODE(file.stat().st_mode) == 0o600


def test_keys_that_are_made_at_once_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = key_command._replace

    def slowly(file: Path, text: str) -> None:
        time.sleep(0.02)
        replace(file, text)

    monkeypatch.setattr(key_command, "_replace", slowly)
    names = [f"user{k}" for k in range(6)]
    with ThreadPoolExecutor(len(names)) as pool:
        assert [*pool.map(lambda name: main([name, "--file", str(tmp_path / "keys")]), names)] == [0] * len(names)
    assert sorted(line.split()[0] for line in (tmp_path / "keys").read_text().splitlines()) == names


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("first", "^a key named 'first' is in .*keys already: choose another name, or make a further key .* --again$"),
        ("no name", "got key name 'no name'"),
    ],
)
def test_what_the_server_would_refuse_is_not_written_and_nothing_is_left_behind(
    tmp_path: Path, name: str, message: str
) -> None:
    file = tmp_path / "keys"
    main(["first", "--file", str(file)])
    before = file.read_text()
    with pytest.raises(ConfigError, match=message):
        main([name, "--file", str(file)])
    assert file.read_text() == before
    assert os.listdir(tmp_path) == ["keys"]


@pytest.mark.parametrize("flags", [[], ["--admin"], ["--adapters", "b,a"]])
def test_a_further_key_of_an_owner_may_do_the_same(
    tmp_path: Path, flags: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "keys"
    main(["first", "--file", str(file), *flags])
    main(["first", "--file", str(file), "--again"])
    keys = Keys(file)
    old, new = map(keys.find, capsys.readouterr().out.split())
    assert old is not None
    assert old == new
    with pytest.raises(ConfigError, match="^no key named 'second' is in .*keys yet: leave --again out$"):
        main(["second", "--file", str(file), "--again"])


@pytest.mark.parametrize("mode", [0o640, 0o444, 0o600])
def test_the_mode_stays_as_it_is(tmp_path: Path, mode: int) -> None:
    file = tmp_path / "keys"
    main(["first", "--file", str(file)])
    file.chmod(mode)
    main(["second", "--file", str(file)])
    assert stat.S_IMODE(file.stat().st_mode) == mode
    assert len(file.read_text().splitlines()) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
def test_owner_and_group_stay_as_they_are(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    main(["first", "--file", str(file)])
    os.chown(file, 10001, 10002)
    file.chmod(0o640)
    main(["second", "--file", str(file)])
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (10001, 10002, 0o640)


def test_a_link_stays_one_and_its_target_has_the_key(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "secret").mkdir()
    file, link = tmp_path / "secret" / "keys", tmp_path / "link"
    main(["first", "--file", str(file)])
    link.symlink_to(Path("secret") / "keys")
    capsys.readouterr()
    main(["second", "--file", str(link)])
    assert link.is_symlink()
    assert Keys(file).find(capsys.readouterr().out.strip()) == Key("second", "predict")
    assert os.listdir(tmp_path / "secret") == ["keys"]


def test_a_file_with_hard_links_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    main(["first", "--file", str(file)])
    os.link(file, tmp_path / "other")
    with pytest.raises(ConfigError, match="2 hard links"):
        main(["second", "--file", str(file)])
    assert len(file.read_text().splitlines()) == 1


def test_a_file_whose_owner_cannot_be_kept_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    main(["first", "--file", str(file)])

    def refuse(descriptor: int, uid: int, gid: int) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(key_command.os, "fchown", refuse)
    with pytest.raises(ConfigError, match="as that user or as root"):
        main(["second", "--file", str(file)])
    assert len(file.read_text().splitlines()) == 1
    assert os.listdir(tmp_path) == ["keys"]


def test_a_full_disk_leaves_the_keys_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "keys"
    main(["first", "--file", str(file)])

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(key_command.os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        main(["second", "--file", str(file)])
    assert len(file.read_text().splitlines()) == 1
    assert os.listdir(tmp_path) == ["keys"]
