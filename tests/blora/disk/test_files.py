"""Files that cannot be read: for the moment, or because they are missing."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from blora.disk.files import TensorsFile, UnreadableError, file_digest, read_json
from blora.errors import AdapterError

READ: dict[str, Callable[[Path], object]] = {
    "JSON": lambda file: read_json(file, advice="restore it"),
    "a digest": lambda file: file_digest(file, advice="restore it"),
    "tensors": lambda file: TensorsFile(file, advice="restore it"),
}


@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize("error", [errno.EIO, errno.ESTALE, errno.EMFILE, errno.EACCES])
def test_an_error_that_may_pass_is_told_apart_from_a_bad_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, read: Callable[[Path], object], error: int
) -> None:
    def failing(*_: object) -> int:
        raise OSError(error, os.strerror(error))

    file = tmp_path / "file"
    file.write_text("{}")
    with monkeypatch.context() as patched:
        patched.setattr("blora.disk.files.os.open", failing)
        with pytest.raises(
            UnreadableError, match=rf"file, which cannot be read \({os.strerror(error)}\).* load it again"
        ):
            read(file)


@pytest.mark.parametrize("read", READ.values(), ids=READ)
@pytest.mark.parametrize(
    "trouble", ["nothing", "a file for its folder", "a link to nowhere", "a link to itself", "a pipe"]
)
def test_a_missing_file_and_what_is_no_file_stay_what_they_are(
    tmp_path: Path, read: Callable[[Path], object], trouble: str
) -> None:
    file = tmp_path / "folder" / "file"
    if trouble == "a file for its folder":
        file.parent.touch()
    else:
        file.parent.mkdir()
    match trouble:
        case "a link to nowhere":
            file.symlink_to("nowhere")
        case "a link to itself":
            file.symlink_to(file)
        case "a pipe":
            os.mkfifo(file)
    with pytest.raises(AdapterError, match=r"which cannot be read \(.*\); restore it") as caught:
        read(file)
    assert not isinstance(caught.value, UnreadableError)
