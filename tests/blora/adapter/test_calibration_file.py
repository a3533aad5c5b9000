import dataclasses
import errno
import json
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import load_adapter
from blora.adapter.calibration_file import (
    CALIBRATION_FILE,
    ROOM_BYTES,
    _read,
    check_ask,
    for_serving,
    read_calibrations,
    record_ask,
    store_calibration,
)
from blora.base_model import BaseModel
from blora.config import MOST_CHOICES
from blora.decision.asks import Ask, AskedRows
from blora.decision.by_choice import ChoiceCounts
from blora.decision.calibration import Goal
from blora.disk.atomic import write_file
from blora.errors import AdapterError, ConfigError, NotCalibratedError
from tests.blora.adapters import contents, rewrite_json, sealed
from tests.blora.decision.test_calibrate import BINDING, DIGEST, made

CALIBRATION = made()


def asked(folder: Path) -> tuple[AskedRows, ...]:
    return _read(folder).asked


def bound(**changes: Any) -> Any:
    return dataclasses.replace(CALIBRATION, binding=dataclasses.replace(BINDING, **changes))


def test_without_a_file_there_is_no_calibration(tmp_path: Path) -> None:
    assert read_calibrations(tmp_path) == ()
    assert for_serving(tmp_path, BINDING) is None


def test_what_is_stored_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    store_calibration(tmp_path, CALIBRATION)
    assert read_calibrations(tmp_path) == (CALIBRATION,)
    assert for_serving(tmp_path, BINDING) == CALIBRATION
    assert [file.name for file in tmp_path.iterdir()] == [CALIBRATION_FILE]


def test_the_counts_of_more_choices_than_a_request_may_have_are_kept(tmp_path: Path) -> None:
    counts = [
        ChoiceCounts(choice=f"choice {k}", n_rows=2, n_missed=1, n_answers=1, n_wrong=0)
        for k in range(MOST_CHOICES + 1)
    ]
    ask = dataclasses.replace(CALIBRATION.asks[-1], max_missed=0.5)
    many = dataclasses.replace(CALIBRATION, choices=tuple(counts), asks=(ask,))
    store_calibration(tmp_path, many)
    assert read_calibrations(tmp_path) == (many,)


def test_the_largest_seed_of_a_goal_is_kept(tmp_path: Path) -> None:
    largest = Goal(seed=2**63 - 1).seed
    ask = dataclasses.replace(CALIBRATION.asks[-1], seed=largest)
    made = dataclasses.replace(CALIBRATION, rows=dataclasses.replace(CALIBRATION.rows, seed=largest), asks=(ask,))
    store_calibration(tmp_path, made)
    assert read_calibrations(tmp_path) == (made,)


def test_each_dtype_has_its_own_and_a_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    store_calibration(tmp_path, CALIBRATION)
    other = bound(dtype="float32")
    store_calibration(tmp_path, other)
    assert read_calibrations(tmp_path) == (CALIBRATION, other)
    again = bound(temperature=2.0)
    store_calibration(tmp_path, again)
    assert read_calibrations(tmp_path) == (other, again)
    assert for_serving(tmp_path, other.binding) == other


def test_a_calibration_of_other_contents_does_not_outlive_them(tmp_path: Path) -> None:
    store_calibration(tmp_path, CALIBRATION)
    new = bound(adapter_digest="sha256:" + "c" * 64, dtype="float32")
    store_calibration(tmp_path, new)
    assert read_calibrations(tmp_path) == (new,)


ASK = Goal().ask_in("bfloat16")
ROWS = AskedRows(
    adapter_digest=DIGEST, digest=CALIBRATION.rows.digest, n_rows=800, fingerprints="0123456789ab" * 2, asks=(ASK,)
)  # fmt: skip


def test_asks_are_remembered_without_a_calibration_too(tmp_path: Path) -> None:
    record_ask(tmp_path, ROWS)
    assert (asked(tmp_path), read_calibrations(tmp_path)) == ((ROWS,), ())
    assert for_serving(tmp_path, BINDING) is None
    store_calibration(tmp_path, CALIBRATION)
    assert (asked(tmp_path), read_calibrations(tmp_path)) == ((ROWS,), (CALIBRATION,))


def test_the_same_rows_are_remembered_once_with_every_ask_of_them(tmp_path: Path) -> None:
    other, fewer = Goal(target_risk=0.2).ask_in("bfloat16"), dataclasses.replace(ROWS, n_rows=700)
    for rows in (ROWS, dataclasses.replace(ROWS, asks=(other,)), ROWS, fewer):
        record_ask(tmp_path, rows)
    assert asked(tmp_path) == (dataclasses.replace(ROWS, asks=(ASK, other)), fewer)
    record_ask(tmp_path, dataclasses.replace(fewer, asks=(other,)))
    assert asked(tmp_path) == tuple(dataclasses.replace(rows, asks=(ASK, other)) for rows in (ROWS, fewer))


def test_asks_of_the_same_rows_add_up_over_the_contents_of_an_adapter(tmp_path: Path) -> None:
    other = dataclasses.replace(
        ROWS, adapter_digest="sha256:" + "c" * 64, asks=(Goal(target_risk=0.2).ask_in("bfloat16"),)
    )
    assert [record_ask(tmp_path, rows) for rows in (ROWS, other)] == [(), (ASK,)]
    assert asked(tmp_path) == (ROWS, other)


def test_asks_of_contents_that_come_back_still_count(tmp_path: Path) -> None:
    refused = dataclasses.replace(ROWS, adapter_digest="sha256:" + "c" * 64)
    for rows in (refused, ROWS):
        record_ask(tmp_path, rows)
    store_calibration(tmp_path, CALIBRATION)
    assert asked(tmp_path) == (refused, ROWS)
    other = Goal(target_risk=0.2).ask_in("bfloat16")
    assert record_ask(tmp_path, dataclasses.replace(refused, asks=(other,))) == (ASK, ASK)


def test_asks_at_the_same_time_are_all_recorded_and_each_but_the_first_knows_of_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asks = [Goal(seed=seed).ask_in("bfloat16") for seed in range(2)]
    with ThreadPoolExecutor(1) as pool:
        others: list[Future[tuple[Ask, ...]]] = []

        def meanwhile(file: Path, text: str) -> None:
            monkeypatch.undo()
            others.append(pool.submit(record_ask, tmp_path, dataclasses.replace(ROWS, asks=(asks[1],))))
            wait(others, timeout=0.3)  # enough for another one that does not wait
            write_file(file, text)

        monkeypatch.setattr("blora.adapter.calibration_file.write_file", meanwhile)
        assert record_ask(tmp_path, dataclasses.replace(ROWS, asks=(asks[0],))) == ()
        assert others[0].result() == (asks[0],)
    assert [rows.asks for rows in asked(tmp_path)] == [tuple(asks)]


def test_a_calibration_and_an_ask_at_the_same_time_are_both_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with ThreadPoolExecutor(1) as pool:

        def meanwhile(file: Path, text: str) -> None:
            monkeypatch.undo()
            wait([pool.submit(record_ask, tmp_path, ROWS)], timeout=0.3)
            write_file(file, text)

        monkeypatch.setattr("blora.adapter.calibration_file.write_file", meanwhile)
        store_calibration(tmp_path, CALIBRATION)
    assert (asked(tmp_path), read_calibrations(tmp_path)) == ((ROWS,), (CALIBRATION,))


def test_a_file_system_without_locks_is_told_before_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(descriptor: int, kind: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", fail)
    for change in (check_ask, record_ask):
        with pytest.raises(AdapterError, match=r"which cannot be locked \(No locks available\), .* to a local disk"):
            change(tmp_path, ROWS)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("wrong", "where"),
    [({"seed": 1.0}, "seed"), ({"seed": True}, "seed"), ({"score": "expected_entropy"}, "score")],
)
def test_what_could_not_be_read_back_is_not_written(tmp_path: Path, wrong: dict[str, Any], where: str) -> None:
    store_calibration(tmp_path, CALIBRATION)
    before, ask = contents(tmp_path), dataclasses.replace(ASK, **wrong)
    for change in (check_ask, record_ask):
        with pytest.raises(AdapterError, match=rf"at asked\.0\.asks\.0\.{where} .*; nothing was written: correct the"):
            change(tmp_path, dataclasses.replace(ROWS, asks=(ask,)))
    with pytest.raises(AdapterError, match=r"at calibrations\.0\.rows\.seed .*; nothing was written"):
        store_calibration(
            tmp_path, dataclasses.replace(CALIBRATION, rows=dataclasses.replace(CALIBRATION.rows, seed=1.0))
        )
    assert contents(tmp_path) == before


def test_more_rows_than_the_file_may_hold_are_refused_and_the_file_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blora.adapter.calibration_file.MOST_BYTES", ROOM_BYTES + 36_000)
    record_ask(tmp_path, ROWS)
    before, many = contents(tmp_path), dataclasses.replace(ROWS, n_rows=3000, fingerprints="0123456789ab" * 3000)
    for change in (check_ask, record_ask):
        with pytest.raises(ConfigError, match=r"expected at most 36000: calibrate on fewer rows, .* nothing was writ"):
            change(tmp_path, many)
    assert contents(tmp_path) == before
    record_ask(tmp_path, dataclasses.replace(many, fingerprints="0123456789ab" * 2800))
    store_calibration(tmp_path, CALIBRATION)  # there is room for it


@pytest.mark.parametrize("version", [1, 2, 3])
def test_a_file_of_an_earlier_version_is_refused(tmp_path: Path, version: int) -> None:
    """Its fields mean something else, or it has no digest that would tell whether it was edited."""
    store_calibration(tmp_path, CALIBRATION)
    raw = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    old = {"format_version": version, "calibrations": raw["calibrations"], "asked": raw["asked"]}
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(old))
    with pytest.raises(AdapterError, match=f"got format_version {version} in .*, expected 4; .* calibrate again"):
        read_calibrations(tmp_path)


def test_an_adapter_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    store_calibration(tmp_path, CALIBRATION)
    changed = "sha256:" + "c" * 64
    with pytest.raises(AdapterError, match=f"for adapter_digest {DIGEST} in .* expected {changed}: the adapter has"):
        for_serving(tmp_path, dataclasses.replace(BINDING, adapter_digest=changed))


@pytest.mark.parametrize(
    ("field", "value"), [("n_samples", 6), ("seed", 4), ("scoring", "label"), ("temperature", 1.0), ("lapse", 0.1)]
)
def test_settings_that_the_digest_rules_out_are_refused_as_edited(tmp_path: Path, field: str, value: Any) -> None:
    store_calibration(tmp_path, bound(**{field: value}))
    with pytest.raises(AdapterError) as info:
        for_serving(tmp_path, BINDING)
    message = str(info.value)
    assert f"got calibration for {field} {value} in " in message
    assert (
        f"expected {getattr(BINDING, field)}, which is what the adapter with this digest has: the file was edited"
        in message
    )


def test_every_dtype_there_is_is_named(tmp_path: Path) -> None:
    store_calibration(tmp_path, CALIBRATION)
    store_calibration(tmp_path, bound(dtype="float32"))
    with pytest.raises(AdapterError, match="for dtype bfloat16, float32 in .* expected float16, in which"):
        for_serving(tmp_path, dataclasses.replace(BINDING, dtype="float16"))


@pytest.mark.parametrize(
    ("calibrated", "served", "told"),
    [
        ("float32", "vllm", "--engine torch --dtype float32, run `blora calibrate .* --engine-url URL"),
        ("vllm", "float32", "--engine vllm, run `blora calibrate .* --dtype float32"),
        ("bfloat16", "float32", "serve it with --dtype bfloat16, run `blora calibrate .* --dtype float32"),
    ],
)
def test_the_flags_that_help_are_named(tmp_path: Path, calibrated: str, served: str, told: str) -> None:
    store_calibration(tmp_path, bound(dtype=calibrated))
    with pytest.raises(NotCalibratedError, match=told):
        for_serving(tmp_path, dataclasses.replace(BINDING, dtype=served))


@sealed
def without_dtype(raw: dict[str, Any]) -> None:
    del raw["calibrations"][0]["asks"][0]["dtype"]


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no JSON": (lambda file: file.write_text("{"), "not JSON"),
    "no UTF-8": (lambda file: file.write_bytes(b"\xff\xfe"), "not JSON"),
    "a list": (lambda file: file.write_text("[]"), "format_version None .* expected 4; upgrade"),
    "an attempt without a dtype": (rewrite_json(without_dtype), r"calibrations\.0\.asks\.0\.dtype"),
    "another version": (rewrite_json(lambda raw: raw.update(format_version=5)), "format_version 5"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "which cannot be read"),
    "a link to nowhere": (lambda file: (file.unlink(), file.symlink_to("nowhere.json")), "which cannot be read \\(No such"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_refused(tmp_path: Path, name: str) -> None:
    store_calibration(tmp_path, CALIBRATION)
    spoil, message = SPOILT[name]
    spoil(tmp_path / CALIBRATION_FILE)
    with pytest.raises(AdapterError, match=message) as info:
        read_calibrations(tmp_path)
    assert CALIBRATION_FILE in str(info.value)
    assert "calibrate again" in str(info.value)


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store_calibration(tmp_path, CALIBRATION)
    before = contents(tmp_path)

    def fail(self: Path, target: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        store_calibration(tmp_path, bound(dtype="float32"))
    assert contents(tmp_path) == before


def test_an_adapter_loads_with_a_calibration_beside_it_and_under_the_same_digest(
    folder: Path, llama: BaseModel
) -> None:
    before = load_adapter(folder, llama)
    store_calibration(folder, bound(adapter_digest=before.digest))
    assert load_adapter(folder, llama).digest == before.digest


def test_the_file_says_its_version_first(tmp_path: Path) -> None:
    store_calibration(tmp_path, CALIBRATION)
    raw = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    assert list(raw) == ["format_version", "digest", "calibrations", "asked"]
    assert len((tmp_path / CALIBRATION_FILE).read_text()) < 30_000


def test_a_folder_may_be_text(tmp_path: Path) -> None:
    store_calibration(str(tmp_path), CALIBRATION)
    assert read_calibrations(str(tmp_path)) == (CALIBRATION,)
    assert for_serving(str(tmp_path), BINDING) == CALIBRATION
