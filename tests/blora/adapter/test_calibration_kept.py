"""What `calibration.json` keeps when its adapter is written again: attempts, and calibrations of equal contents."""

import dataclasses
import errno
import os
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import load_adapter
from blora.adapter.calibration_file import CALIBRATION_FILE, read_calibrations, record_ask, store_calibration
from blora.base_model import BaseModel
from blora.decision.calibration import Goal
from blora.disk.files import UnreadableError
from tests.blora.adapter.test_calibration_file import ASK, CALIBRATION, ROWS, SPOILT, asked, bound
from tests.blora.adapters import contents, saved

OTHER = dataclasses.replace(ROWS, n_rows=700, asks=(Goal(target_risk=0.2).ask_in("bfloat16"),))


def in_place(folder: Path) -> dict[str, bytes]:
    """Return the contents of an adapter's folder without those of a write that failed, which stay in a hidden folder."""
    return {name: content for name, content in contents(folder).items() if not name.startswith(".partial-")}


def test_writing_the_adapter_again_keeps_attempts_and_drops_calibrations(
    folder: Path, llama: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    for rows in (ROWS, OTHER):
        record_ask(folder, rows)
    store_calibration(folder, CALIBRATION)
    for n_calibrations in (1, 0):
        saved(folder, llama, method="lora")
        assert (asked(folder), read_calibrations(folder)) == ((ROWS, OTHER), ())
        [told] = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        assert told.startswith(f"kept the record of calibration attempts (2) in {folder / CALIBRATION_FILE}, and ")
        assert f"removed calibrations of the earlier adapter ({n_calibrations}): run blora calibrate again" in told
        caplog.clear()
    assert load_adapter(folder, llama).config.posterior.method == "lora"
    again = dataclasses.replace(ROWS, adapter_digest=load_adapter(folder, llama).digest)
    assert record_ask(folder, again) == (ASK, *OTHER.asks)


def test_writing_the_same_contents_again_keeps_their_calibrations(
    folder: Path, llama: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    own = bound(adapter_digest=load_adapter(folder, llama).digest)
    record_ask(folder, ROWS)
    store_calibration(folder, own)
    caplog.set_level("INFO")
    saved(folder, llama)
    assert (asked(folder), read_calibrations(folder)) == ((ROWS,), (own,))
    [told] = [record.getMessage() for record in caplog.records]
    assert told == f"kept {folder / CALIBRATION_FILE}, whose calibrations are of the same contents"


def test_nothing_is_told_of_an_adapter_that_was_never_calibrated(
    folder: Path, llama: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    saved(folder, llama, method="lora")
    assert not (folder / CALIBRATION_FILE).exists()
    assert [record.getMessage() for record in caplog.records] == []


@pytest.mark.parametrize("edited", [True, False])
def test_writing_the_adapter_again_keeps_a_card_that_was_edited(
    edited: bool, folder: Path, llama: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    card, kept = folder / "README.md", folder / "README.md.before"
    before = card.read_text() + ("\n## Limits\n\nNot for children.\n" if edited else "")
    card.write_text(before)
    saved(folder, llama, method="lora")
    assert "Not for children" not in card.read_text()
    assert (kept.read_text() if kept.exists() else None) == (before if edited else None)
    told = [record.getMessage() for record in caplog.records if "README.md.before" in record.getMessage()]
    assert told == (
        [f"the card in {folder} was edited: it is now README.md.before, beside a new one"] if edited else []
    )


@pytest.mark.parametrize("name", [name for name in SPOILT if name != "a folder"])
def test_a_spoilt_file_does_not_hinder_the_writing_and_is_removed(
    name: str, folder: Path, llama: BaseModel, caplog: pytest.LogCaptureFixture
) -> None:
    store_calibration(folder, CALIBRATION)
    SPOILT[name][0](folder / CALIBRATION_FILE)
    saved(folder, llama, method="lora")
    assert load_adapter(folder, llama).config.posterior.method == "lora"
    assert CALIBRATION_FILE not in [file.name for file in folder.iterdir()]
    [told] = [record.getMessage() for record in caplog.records]
    assert told.startswith(f"removed {folder / CALIBRATION_FILE} of the earlier adapter, with its record of")


@pytest.mark.parametrize("call", ["lstat", "open"])
def test_a_file_that_cannot_be_read_at_the_moment_is_not_taken_for_none(
    call: str, folder: Path, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_ask(folder, ROWS)
    store_calibration(folder, CALIBRATION)
    before, real = contents(folder), getattr(os, call)

    def failing(path: Path, *more: int) -> Any:
        if Path(path).name == CALIBRATION_FILE:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return real(path, *more)

    with monkeypatch.context() as patched:
        patched.setattr(f"blora.disk.files.os.{call}", failing)
        for reading in (partial(read_calibrations, folder), partial(saved, folder, llama, method="lora")):
            with pytest.raises(UnreadableError, match="load it again"):
                reading()
    assert in_place(folder) == before
    assert read_calibrations(folder) == (CALIBRATION,)


def test_a_disk_without_room_for_the_record_leaves_adapter_and_record(
    folder: Path, llama: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    record_ask(folder, ROWS)
    before = contents(folder)

    def full(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("blora.adapter.calibration_file.write_file", full)
    with pytest.raises(OSError, match="no space left"):
        saved(folder, llama, method="lora")
    assert in_place(folder) == before
