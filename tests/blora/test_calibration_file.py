import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import load_adapter
from blora.base_model import BaseModel
from blora.calibration_file import CALIBRATION_FILE, asked, for_serving, read, remember, store
from blora.decision.asks import AskedRows
from blora.decision.calibration import Goal
from blora.errors import AdapterError
from tests.blora.adapters import contents, rewrite_json, saved
from tests.blora.test_calibrate import BINDING, DIGEST, made

CALIBRATION = made()


def bound(**changes: Any) -> Any:
    return dataclasses.replace(CALIBRATION, binding=dataclasses.replace(BINDING, **changes))


def test_without_a_file_there_is_no_calibration(tmp_path: Path) -> None:
    assert read(tmp_path) == ()
    assert for_serving(tmp_path, BINDING) is None


def test_what_is_stored_is_read_back_to_the_last_bit(tmp_path: Path) -> None:
    store(tmp_path, CALIBRATION)
    assert read(tmp_path) == (CALIBRATION,)
    assert for_serving(tmp_path, BINDING) == CALIBRATION
    assert [file.name for file in tmp_path.iterdir()] == [CALIBRATION_FILE]


def test_each_dtype_has_its_own_and_a_new_one_takes_the_place_of_the_old(tmp_path: Path) -> None:
    store(tmp_path, CALIBRATION)
    other = bound(dtype="float32")
    store(tmp_path, other)
    assert read(tmp_path) == (CALIBRATION, other)
    again = bound(temperature=2.0)
    store(tmp_path, again)
    assert read(tmp_path) == (other, again)
    assert for_serving(tmp_path, other.binding) == other


def test_a_calibration_of_other_contents_does_not_outlive_them(tmp_path: Path) -> None:
    store(tmp_path, CALIBRATION)
    new = bound(adapter_digest="sha256:" + "c" * 64, dtype="float32")
    store(tmp_path, new)
    assert read(tmp_path) == (new,)


ROWS = AskedRows(
    adapter_digest=DIGEST, digest=CALIBRATION.rows.digest, n_rows=800, fingerprints="0123456789ab" * 2, asks=(Goal().ask,)
)  # fmt: skip


def test_asks_are_remembered_without_a_calibration_too(tmp_path: Path) -> None:
    remember(tmp_path, ROWS)
    assert (asked(tmp_path), read(tmp_path)) == ((ROWS,), ())
    assert for_serving(tmp_path, BINDING) is None
    store(tmp_path, CALIBRATION)
    assert (asked(tmp_path), read(tmp_path)) == ((ROWS,), (CALIBRATION,))


def test_the_same_rows_are_remembered_once_with_every_ask_of_them(tmp_path: Path) -> None:
    other, fewer = Goal(target_risk=0.2).ask, dataclasses.replace(ROWS, n_rows=700)
    for rows in (ROWS, dataclasses.replace(ROWS, asks=(other,)), ROWS, fewer):
        remember(tmp_path, rows)
    assert asked(tmp_path) == (dataclasses.replace(ROWS, asks=(Goal().ask, other)), fewer)


def test_asks_of_other_contents_do_not_outlive_them(tmp_path: Path) -> None:
    for digest in ("sha256:" + "c" * 64, DIGEST):
        remember(tmp_path, dataclasses.replace(ROWS, adapter_digest=digest))
    store(tmp_path, CALIBRATION)
    assert asked(tmp_path) == (ROWS,)


def test_a_calibration_of_the_first_format_is_the_only_ask_of_its_rows(tmp_path: Path) -> None:
    store(tmp_path, CALIBRATION)
    store(tmp_path, bound(dtype="float32"))
    raw = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    old = [{name: value for name, value in entry.items() if name != "asks"} for entry in raw["calibrations"]]
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps({"format_version": 1, "calibrations": old}))
    assert read(tmp_path) == (CALIBRATION, bound(dtype="float32"))
    assert CALIBRATION.asks == (Goal().ask,)
    assert asked(tmp_path) == (dataclasses.replace(ROWS, fingerprints=""),)
    remember(tmp_path, ROWS)
    assert asked(tmp_path) == (ROWS,)
    assert json.loads((tmp_path / CALIBRATION_FILE).read_text())["format_version"] == 2


def test_an_adapter_that_has_changed_since_is_refused(tmp_path: Path) -> None:
    store(tmp_path, CALIBRATION)
    changed = "sha256:" + "c" * 64
    with pytest.raises(AdapterError, match=f"for adapter_digest {DIGEST} in .* expected {changed}: the adapter has"):
        for_serving(tmp_path, dataclasses.replace(BINDING, adapter_digest=changed))


@pytest.mark.parametrize(
    ("field", "value"), [("n_samples", 6), ("seed", 4), ("scoring", "label"), ("temperature", 1.0), ("lapse", 0.1)]
)
def test_settings_that_the_digest_rules_out_are_refused_as_edited(tmp_path: Path, field: str, value: Any) -> None:
    store(tmp_path, bound(**{field: value}))
    with pytest.raises(AdapterError) as info:
        for_serving(tmp_path, BINDING)
    message = str(info.value)
    assert f"got calibration for {field} {value} in " in message
    assert f"expected {getattr(BINDING, field)}, as contents of this digest say: the file was edited" in message


def test_every_dtype_there_is_is_named(tmp_path: Path) -> None:
    store(tmp_path, CALIBRATION)
    store(tmp_path, bound(dtype="float32"))
    with pytest.raises(AdapterError, match="for dtype bfloat16, float32 in .* expected float16, in which"):
        for_serving(tmp_path, dataclasses.replace(BINDING, dtype="float16"))


def change_calibration(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Any]:
    return rewrite_json(lambda raw: change(raw["calibrations"][0]))


def default(raw: dict[str, Any]) -> dict[str, Any]:
    """The level that is the default policy."""
    [found] = [level for level in raw["levels"] if level["target_risk"] == raw["target_risk"]]
    return found


def other_seed(raw: dict[str, Any]) -> dict[str, Any]:
    """A binding that differs in what the digest rules out."""
    return {"binding": raw["calibrations"][0]["binding"] | {"seed": 99}}


SPOILT: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no JSON": (lambda file: file.write_text("{"), "not JSON"),
    "no UTF-8": (lambda file: file.write_bytes(b"\xff\xfe"), "not JSON"),
    "a list": (lambda file: file.write_text("[]"), "format_version None .* expected 2; upgrade"),
    "another version": (rewrite_json(lambda raw: raw.update(format_version=3)), "format_version 3"),
    "no entries": (rewrite_json(lambda raw: raw.update(calibrations=[])), "got 0 calibrations"),
    "the same twice": (rewrite_json(lambda raw: raw["calibrations"].append(raw["calibrations"][0])), "no two for"),
    "the same dtype twice": (rewrite_json(lambda raw: raw["calibrations"].append(raw["calibrations"][0] | other_seed(raw))), "no two for the same contents and dtype"),
    "a folder": (lambda file: (file.unlink(), file.mkdir()), "which cannot be read"),
    "a link to nowhere": (lambda file: (file.unlink(), file.symlink_to("nowhere.json")), "which cannot be read \\(No such"),
    "no forms": (change_calibration(lambda c: c["rows"].pop("forms")), "0.rows.forms"),
    "another form": (change_calibration(lambda c: c["rows"].update(forms=["song"])), "0.rows.forms"),
    "wrong answers without a bound": (change_calibration(lambda c: default(c).update(error=1.0, upper_bound=0.0)), "have p-value 1, expected at most delta"),
    "nothing answered": (change_calibration(lambda c: default(c).update(coverage=0.0)), "coverage = 0.0"),
    "confidence from 0 on": (change_calibration(lambda c: default(c).update(score="confidence", threshold=0.0)), "threshold = 0.0 on confidence"),
    "entropy without end": (change_calibration(lambda c: default(c).update(score="predictive_entropy", threshold=1e300)), "threshold = 1e"),
    "information of one draw": (change_calibration(lambda c: (c["binding"].update(n_samples=1), default(c).update(score="mutual_information"))), "of one draw"),
    "a proof of one row": (change_calibration(lambda c: c["rows"].update(n_proof=1)), "200 tuning and 1 proof rows"),
    "rows without end": (change_calibration(lambda c: c["rows"].update(n_rows=10**400)), "n_rows = 1000"),
    "choices without end": (change_calibration(lambda c: c["rows"].update(most_choices=10**400)), "expected 20 equal ones up to ln"),
    "a count without end": (change_calibration(lambda c: c["reliability"][14].update(count=10**400)), "reliability bins of 1000"),
    "falling quantiles": (change_calibration(lambda c: c["quantiles"][2].update(quantile=0.0)), "none to fall"),
    "a curve out of order": (change_calibration(lambda c: c["curve"].reverse()), "does not rise"),
    "a bin without a confidence": (change_calibration(lambda c: c["reliability"][14].update(confidence=None)), "with confidence None"),
    "a histogram without counts": (change_calibration(lambda c: c.update(entropy={"edges": [0.0], "counts": []})), "1 edges of 0 counts"),
    "an unknown field": (rewrite_json(lambda raw: raw.update(more=1)), "bad value at more"),
    "a missing field": (change_calibration(lambda c: c.pop("delta")), "calibrations.0.delta"),
    "an unknown field within": (change_calibration(lambda c: c["binding"].update(gpu=1)), "0.binding.gpu"),
    "a number in a string": (change_calibration(lambda c: c.update(delta="0.05")), "0.delta"),
    "draws in a float": (change_calibration(lambda c: c["binding"].update(n_samples=5.5)), "n_samples"),
    "an ask below nothing": (change_calibration(lambda c: c["asks"][0].update(delta=-1.0)), "delta = -1.0, expected a number above 0"),
    "a delta without the earlier asks": (change_calibration(lambda c: c["asks"].insert(0, c["asks"][0] | {"target_risk": 0.01})), "delta = 0.05, expected 0.1, the sum over all asks"),
    "no fingerprints": (rewrite_json(lambda raw: raw.update(asked=[dataclasses.asdict(ROWS) | {"fingerprints": "0123"}])), "12 hex digits a row"),
    "an ask without rows": (rewrite_json(lambda raw: raw.update(asked=[{"asks": []}])), "asked.0.adapter_digest"),
    "another score": (change_calibration(lambda c: c["levels"][4].update(score="luck")), "levels.4.score"),
    "NaN": (change_calibration(lambda c: c["levels"][4].update(threshold=float("nan"))), "levels.4.threshold"),
    "infinity": (change_calibration(lambda c: c["levels"][4].update(threshold=float("inf"))), "levels.4.threshold"),
    "a negative threshold": (change_calibration(lambda c: c["levels"][4].update(threshold=-0.1)), "-0.1"),
    "a target above one": (change_calibration(lambda c: c["levels"][4].update(target_risk=1.2)), "target_risk = 1.2"),
    "a quantile above one": (change_calibration(lambda c: c["quantiles"][0].update(quantile=1.5)), "quantile = 1.5"),
    "a bin below nothing": (change_calibration(lambda c: c["reliability"][0].update(count=-1)), "a reliability bin of -1 answers"),
    "a bin of NaN": (change_calibration(lambda c: c["reliability"][14].update(accuracy=float("nan"))), "reliability.14"),
    "an unknown field of a bin": (change_calibration(lambda c: c["reliability"][0].update(x=1)), "reliability.0.x"),
    "counts below nothing": (change_calibration(lambda c: c["entropy"]["counts"].__setitem__(0, -1)), "below 0"),
    "no such digest": (change_calibration(lambda c: c["binding"].update(adapter_digest="sha256:1")), "sha256:1"),
    "rows that do not add up": (change_calibration(lambda c: c["rows"].update(n_rows=804)), "expected a quarter and the rest, 201 and 603"),
}  # fmt: skip


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_file_is_refused(tmp_path: Path, name: str) -> None:
    store(tmp_path, CALIBRATION)
    spoil, message = SPOILT[name]
    spoil(tmp_path / CALIBRATION_FILE)
    with pytest.raises(AdapterError, match=message) as info:
        read(tmp_path)
    assert CALIBRATION_FILE in str(info.value)
    assert "calibrate again" in str(info.value)


def test_a_file_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store(tmp_path, CALIBRATION)
    before = contents(tmp_path)

    def fail(self: Path, target: Path) -> None:
        raise OSError("no room")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="no room"):
        store(tmp_path, bound(dtype="float32"))
    assert contents(tmp_path) == before


def test_an_adapter_loads_with_a_calibration_beside_it_and_under_the_same_digest(
    folder: Path, llama: BaseModel
) -> None:
    before = load_adapter(folder, llama)
    store(folder, bound(adapter_digest=before.digest))
    assert load_adapter(folder, llama).digest == before.digest


def test_writing_the_adapter_again_leaves_no_calibration(folder: Path, llama: BaseModel) -> None:
    store(folder, CALIBRATION)
    saved(folder, llama)
    assert read(folder) == ()


def test_the_file_says_its_version_first(tmp_path: Path) -> None:
    store(tmp_path, CALIBRATION)
    raw = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    assert list(raw) == ["format_version", "calibrations", "asked"]
    assert len((tmp_path / CALIBRATION_FILE).read_text()) < 30_000


def test_a_folder_may_be_text(tmp_path: Path) -> None:
    store(str(tmp_path), CALIBRATION)
    assert read(str(tmp_path)) == (CALIBRATION,)
    assert for_serving(str(tmp_path), BINDING) == CALIBRATION
