"""The key file: its format, and changes under a running server."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blora.errors import ConfigError
from blora.server.keys import Key, Keys, line_of, new_key


def write(file: Path, *lines: str) -> Path:
    """Write a file with a later modification time, however coarse the clock of the file system is."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    file.write_text("".join(f"{line}\n" for line in lines))
    os.utime(file, ns=(before + 10**9, before + 10**9))
    return file


def test_a_key_is_found_by_its_hash_alone(tmp_path: Path) -> None:
    first, second = new_key(), new_key()
    file = write(tmp_path / "keys", "# ours", line_of("shop", "predict", first), "", line_of("ops", "admin", second))
    keys = Keys(file)
    assert keys.find(first) == Key("shop", "predict")
    assert keys.find(second) == Key("ops", "admin")
    assert keys.find(new_key()) is None
    assert keys.find("") is None
    assert keys.find("schlüssel\udcff".encode("utf-8", "replace").decode()) is None
    assert first not in file.read_text()


def test_keys_are_long_and_never_the_same() -> None:
    keys = {new_key() for _ in range(100)}
    assert len(keys) == 100
    assert min(map(len, keys)) >= 49


def test_a_new_line_opens_and_a_removed_one_closes_without_a_restart(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    file = write(tmp_path / "keys", line_of("old", "predict", old))
    keys = Keys(file)
    write(file, line_of("old", "predict", old), line_of("new", "predict", new))
    assert keys.find(old) is not None
    assert keys.find(new) is not None
    write(file, line_of("new", "predict", new))
    assert keys.find(old) is None
    assert keys.find(new) is not None


def test_an_owner_has_two_keys_while_one_is_replaced(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    keys = Keys(
        write(tmp_path / "keys", line_of("a", "predict", old, ["x", "y"]), line_of("a", "predict", new, ["y", "x"]))
    )
    assert keys.find(old) == keys.find(new) == Key("a", "predict", frozenset({"x", "y"}))


@pytest.mark.parametrize("trouble", ["gone", "garbled"])
def test_a_file_that_turns_bad_changes_nothing(tmp_path: Path, trouble: str, caplog: pytest.LogCaptureFixture) -> None:
    key = new_key()
    file = write(tmp_path / "keys", line_of("shop", "predict", key))
    keys = Keys(file)
    if trouble == "gone":
        file.unlink()
    else:
        write(file, "what?")
    assert keys.find(key) == Key("shop", "predict")
    assert keys.find(new_key()) is None
    assert "Keys stay as they were" in caplog.text


def opening(monkeypatch: pytest.MonkeyPatch, file: Path, error: int | None) -> list[str]:
    """Count the tries to open a file, which fail with an error if there is one; return a list that has one item each."""
    real, tries = os.open, list[str]()

    def counted(path: Path | str, *args: int) -> int:
        if str(path) == str(file):
            tries.append(str(path))
            if error is not None:
                raise OSError(error, os.strerror(error), str(path))
        return real(path, *args)

    monkeypatch.setattr("blora.server.keys.os.open", counted)
    return tries


@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_a_read_that_fails_is_tried_again_and_a_revoked_key_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: int
) -> None:
    leaked, other = new_key(), new_key()
    file = write(tmp_path / "keys", line_of("leaked", "predict", leaked), line_of("other", "predict", other))
    keys = Keys(file)
    for n_failures in (1, 2):
        write(file, line_of("other", "predict", other))
        with monkeypatch.context() as patched:
            tries = opening(patched, file, error)
            for _ in range(5):
                assert keys.find(other) is not None
            assert (keys.find(leaked) is not None) == (n_failures == 1)
            assert len(tries) == 6
        assert keys.find(leaked) is None
        assert keys.find(other) is not None
        assert caplog.text.count("Keys stay as they were") == n_failures


@pytest.mark.parametrize("trouble", ["garbled", "not text", "a terabyte", "gone"])
def test_what_stays_wrong_is_read_and_told_of_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, trouble: str
) -> None:
    key = new_key()
    file = tmp_path / "keys"
    spoil: dict[str, Callable[[], object]] = {
        "garbled": lambda: write(file, "what?"),
        "not text": lambda: file.write_bytes(b"\xff"),
        "a terabyte": lambda: os.truncate(file, 2**40),
        "gone": file.unlink,
    }
    write(file, line_of("shop", "predict", key))
    keys = Keys(file)
    for n_failures in (1, 2):
        spoil[trouble]()
        with monkeypatch.context() as patched:
            tries = opening(patched, file, None)
            for _ in range(5):
                assert keys.find(key) is not None
            assert len(tries) == 1
        assert caplog.text.count("Keys stay as they were") == n_failures
        write(file, line_of("shop", "predict", key))
        assert keys.find(key) is not None


def test_a_write_in_place_is_seen_whatever_the_modification_time_says(tmp_path: Path) -> None:
    old, new = new_key(), new_key()
    file = write(tmp_path / "keys", line_of("shop", "predict", old))
    keys, times = Keys(file), (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    file.write_text("")  # as `cp` does before it writes
    os.utime(file, ns=times)
    assert keys.find(old) is None
    file.write_text(line_of("shop", "predict", old) + "\n")
    os.utime(file, ns=times)
    assert keys.find(old) is not None
    before = file.stat().st_ctime_ns
    while file.stat().st_ctime_ns == before:  # the clock of the file system may be coarse
        file.write_text(line_of("shop", "predict", new) + "\n")  # as many bytes
        os.utime(file, ns=times)
    assert keys.find(old) is None
    assert keys.find(new) is not None


@pytest.mark.parametrize("trouble", ["a pipe", "a folder", "a device", "a loop of links", "a terabyte"])
def test_what_is_no_file_of_keys_is_neither_waited_for_nor_read_without_end(tmp_path: Path, trouble: str) -> None:
    key = new_key()
    file = write(tmp_path / "keys", line_of("shop", "predict", key))
    keys = Keys(file)
    file.unlink()
    match trouble:
        case "a pipe":
            os.mkfifo(file)
        case "a folder":
            file.mkdir()
        case "a device":
            file.symlink_to("/dev/zero")
        case "a loop of links":
            file.symlink_to(file)
        case "a terabyte":
            file.touch()
            os.truncate(file, 2**40)
    assert keys.find(key) == Key("shop", "predict")
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(file)


def test_a_file_without_keys_lets_nobody_in(tmp_path: Path) -> None:
    key = new_key()
    file = write(tmp_path / "keys", line_of("shop", "predict", key))
    keys = Keys(file)
    write(file, "# nobody")
    assert keys.find(key) is None


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "holds no key"),
        (["shop predict"], "Line 1 of .* is not a key"),
        (["# one", "shop root sha256:" + "0" * 64], "Line 2 of .* is not a key"),
        (["shop predict sha256:" + "0" * 63], "Line 1 of .* is not a key"),
        (["-shop predict sha256:" + "0" * 64], "Line 1 of .* is not a key"),
        (["a predict sha256:" + "0" * 64, "a predict sha256:" + "0" * 64], "Key 'a' is in .* twice"),
        (["a predict sha256:" + "0" * 64, "a admin sha256:" + "1" * 64], "keys named 'a' .* different scopes"),
        (
            ["a predict sha256:" + "0" * 64 + " adapters=x", "a predict sha256:" + "1" * 64],
            "keys named 'a' .* or adapters",
        ),
        (["a predict sha256:" + "0" * 64, "b predict sha256:" + "0" * 64], "Key 'b' is in .* twice"),
    ],
)
def test_a_file_that_makes_no_sense_is_refused(tmp_path: Path, lines: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Keys(write(tmp_path / "keys", *lines))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        Keys(tmp_path / "keys")
