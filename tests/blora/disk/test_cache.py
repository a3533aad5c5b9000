"""The cache folder is created where BLORA_CACHE_DIR says, and a place where it cannot be is named."""

from pathlib import Path

import pytest

from blora.base_model import load_base_model
from blora.disk.cache import cache_folder
from blora.errors import ConfigError


def test_the_folder_is_created(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLORA_CACHE_DIR", str(tmp_path / "new" / "cache"))
    assert cache_folder() == tmp_path / "new" / "cache"
    assert cache_folder().is_dir()


def test_a_folder_that_cannot_be_created_is_named_and_is_no_fault_of_the_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("BLORA_CACHE_DIR", str(tmp_path / "file" / "cache"))
    message = f"got cache folder {tmp_path}/file/cache.*BLORA_CACHE_DIR"
    with pytest.raises(ConfigError, match=message):
        cache_folder()
    with pytest.raises(ConfigError, match=message):
        load_base_model("embedded", device="cpu", dtype="float32")
