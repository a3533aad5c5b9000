"""A `calibration.json` that was edited is refused by its digest, and one that makes no sense whatever its digest."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blora.adapter.calibration_file import CALIBRATION_FILE, read_calibrations, store_calibration
from blora.decision.asks import Ask
from blora.decision.calibration import MAX_ENTRIES, MAX_ROWS, ConformalQuantile
from blora.decision.curves import ReliabilityBin
from blora.decision.selective import Level
from blora.errors import AdapterError
from tests.blora.adapter.test_calibration_file import ROWS as ASKED
from tests.blora.adapters import rewrite_json, sealed
from tests.blora.decision.test_calibrate import BINDING, made

CALIBRATION = made()
EMPTY = ReliabilityBin(0, None, None)

Change = Callable[[dict[str, Any]], Any]


def entry(change: Change) -> Change:
    return lambda raw: change(raw["calibrations"][0])


def default(raw: dict[str, Any]) -> dict[str, Any]:
    """The level that is the default policy."""
    [found] = [level for level in raw["levels"] if level["target_risk"] == raw["target_risk"]]
    return found


def other_seed(raw: dict[str, Any]) -> dict[str, Any]:
    """A binding that differs in what the adapter's digest rules out."""
    return {"binding": raw["calibrations"][0]["binding"] | {"seed": 99}}


def ask(target_risk: float, delta: float = 0.05, seed: int = 0) -> Ask:
    return Ask(target_risk=target_risk, delta=delta, seed=seed, dtype="bfloat16")


def levels(default: dict[str, Any], **all_of_them: Any) -> tuple[Level, ...]:
    """The levels, with changes of the one that is the default policy, or of all."""
    return tuple(
        dataclasses.replace(level, **all_of_them, **(default if level == CALIBRATION.default_level else {}))
        for level in CALIBRATION.levels
    )


def quantiles(*numbers: float | None) -> tuple[ConformalQuantile, ...]:
    return tuple(
        ConformalQuantile(coverage=coverage, quantile=number)
        for coverage, number in zip((0.8, 0.9, 0.95), numbers, strict=True)
    )


def bins(**changed: ReliabilityBin) -> tuple[ReliabilityBin, ...]:
    """Those of the calibration with others in some places, as in at14."""
    new = {int(place.removeprefix("at")): row for place, row in changed.items()}
    return tuple(new.get(index, row) for index, row in enumerate(CALIBRATION.reliability))


LAST = CALIBRATION.reliability[14]
# Parts of the record in the place of its own.
PARTS: dict[str, dict[str, Any]] = {
    "delta": {"delta": 0.0},
    "an ask that is left out of delta": {"asks": (ask(0.01), ask(0.05))},
    "asks that use up the rows": {"delta": 1.0, "asks": (ask(0.05),) * 20},
    "asks without its own": {"asks": (ask(0.01),)},
    "an ask with another seed": {"asks": (ask(0.05, seed=1),)},
    "levels proved at the delta of all asks": {"delta": 0.051, "asks": (ask(0.01), ask(0.05, delta=0.001))},
    "an unproved default": {"target_risk": 0.03, "asks": (ask(0.03),)},
    "a coverage without a quantile": {"coverage": 0.5},
    "no levels": {"levels": ()},
    "levels out of order": {"levels": CALIBRATION.levels[::-1]},
    "too many levels": {"levels": CALIBRATION.levels * 30},
    "wrong answers without a bound": {"levels": levels({"error": 1.0, "upper_bound": 0.0})},
    "a bound of its own": {"levels": levels({"upper_bound": 0.0})},
    "a threshold that answers nothing": {"levels": levels({"coverage": 0.0})},
    "a share of no rows": {"levels": levels({"coverage": 0.50001})},
    "confidence from 0 on": {"levels": levels({"score": "confidence", "threshold": 0.0})},
    "entropy without end": {"levels": levels({"score": "predictive_entropy", "threshold": 1e+300})},
    "information without end": {"levels": levels({"score": "mutual_information", "threshold": 1.2})},
    "information of two draws": {"binding": dataclasses.replace(BINDING, n_samples=2), "levels": levels({"score": "mutual_information", "threshold": 0.8})},
    "information of one draw": {"binding": dataclasses.replace(BINDING, n_samples=1), "levels": levels({}, score="mutual_information")},
    "falling quantiles": {"quantiles": quantiles(0.5, 0.4, 0.6)},
    "quantiles out of order": {"quantiles": CALIBRATION.quantiles[::-1]},
    "a quantile left out": {"quantiles": quantiles(0.4, 0.5, None)},
    "a quantile of too few rows": {"quantiles": (*CALIBRATION.quantiles, ConformalQuantile(coverage=0.999, quantile=1.0))},
    "no bins": {"reliability": ()},
    "bins of fewer rows": {"reliability": bins(at14=EMPTY)},
    "a bin of other confidences": {"reliability": bins(at14=ReliabilityBin(LAST.count, 0.9, LAST.accuracy))},
    "bins of other answers": {"reliability": bins(at14=ReliabilityBin(LAST.count, LAST.confidence, 0.5))},
    "no curve": {"curve": ()},
    "too long a curve": {"curve": ((1.0, 0.1),) * 101},
    "a risk above one": {"curve": ((1.0, 1.5),)},
    "a curve out of order": {"curve": CALIBRATION.curve[::-1]},
    "a curve that stops": {"curve": CALIBRATION.curve[:-1]},
}  # fmt: skip
EDITS: dict[str, Change] = {
    "no entries": (lambda raw: raw.update(calibrations=[])),
    "the same twice": (lambda raw: raw["calibrations"].append(raw["calibrations"][0])),
    "the same dtype twice": (lambda raw: raw["calibrations"].append(raw["calibrations"][0] | other_seed(raw))),
    "no forms": entry(lambda c: c["rows"].pop("forms")),
    "another form": entry(lambda c: c["rows"].update(forms=["song"])),
    "wrong answers without a bound": entry(lambda c: default(c).update(error=1.0, upper_bound=0.0)),
    "nothing answered": entry(lambda c: default(c).update(coverage=0.0)),
    "confidence from 0 on": entry(lambda c: default(c).update(score="confidence", threshold=0.0)),
    "entropy without end": entry(lambda c: default(c).update(score="predictive_entropy", threshold=1e300)),
    "information of one draw": entry(lambda c: (c["binding"].update(n_samples=1), default(c).update(score="mutual_information"))),
    "a proof of one row": entry(lambda c: c["rows"].update(n_proof=1)),
    "rows without end": entry(lambda c: c["rows"].update(n_rows=10**400)),
    "choices without end": entry(lambda c: c["rows"].update(most_choices=10**400)),
    "a count without end": entry(lambda c: c["reliability"][14].update(count=10**400)),
    "falling quantiles": entry(lambda c: c["quantiles"][2].update(quantile=0.0)),
    "a curve out of order": entry(lambda c: c["curve"].reverse()),
    "a bin without a confidence": entry(lambda c: c["reliability"][14].update(confidence=None)),
    "an unknown field": (lambda raw: raw.update(more=1)),
    "a missing field": entry(lambda c: c.pop("delta")),
    "an unknown field within": entry(lambda c: c["binding"].update(gpu=1)),
    "a number in a string": entry(lambda c: c.update(delta="0.05")),
    "draws in a float": entry(lambda c: c["binding"].update(n_samples=5.5)),
    "an ask below nothing": entry(lambda c: c["asks"][0].update(delta=-1.0)),
    "a delta without the earlier asks": entry(lambda c: c["asks"].insert(0, c["asks"][0] | {"target_risk": 0.01})),
    "no fingerprints": (lambda raw: raw.update(asked=[dataclasses.asdict(ASKED) | {"fingerprints": "0123"}])),
    "an ask without rows": (lambda raw: raw.update(asked=[{"asks": []}])),
    "another score": entry(lambda c: c["levels"][4].update(score="luck")),
    "NaN": entry(lambda c: c["levels"][4].update(threshold=float("nan"))),
    "infinity": entry(lambda c: c["levels"][4].update(threshold=float("inf"))),
    "a negative threshold": entry(lambda c: c["levels"][4].update(threshold=-0.1)),
    "a target above one": entry(lambda c: c["levels"][4].update(target_risk=1.2)),
    "a quantile above one": entry(lambda c: c["quantiles"][0].update(quantile=1.5)),
    "a bin below nothing": entry(lambda c: c["reliability"][0].update(count=-1)),
    "a bin of NaN": entry(lambda c: c["reliability"][14].update(accuracy=float("nan"))),
    "an unknown field of a bin": entry(lambda c: c["reliability"][0].update(x=1)),
    "no such digest": entry(lambda c: c["binding"].update(adapter_digest="sha256:1")),
    "rows that do not add up": entry(lambda c: c["rows"].update(n_rows=804)),
}  # fmt: skip


def with_parts(name: str) -> Change:
    parts = json.loads(json.dumps(PARTS[name], default=dataclasses.asdict))
    return entry(lambda calibration: calibration.update(parts))


@pytest.mark.parametrize("change", [*map(with_parts, PARTS), *EDITS.values()], ids=[*PARTS, *EDITS])
def test_a_file_that_was_edited_is_refused(tmp_path: Path, change: Change) -> None:
    store_calibration(tmp_path, CALIBRATION)
    rewrite_json(change)(tmp_path / CALIBRATION_FILE)
    with pytest.raises(AdapterError, match=f"{CALIBRATION_FILE}, which is not as .* it was edited; .* calibrate again"):
        read_calibrations(tmp_path)


@pytest.mark.parametrize("name", ["digest", "asked"])
def test_a_file_without_its_digest_or_its_asks_is_refused(tmp_path: Path, name: str) -> None:
    store_calibration(tmp_path, CALIBRATION)
    rewrite_json(lambda raw: raw.pop(name))(tmp_path / CALIBRATION_FILE)
    with pytest.raises(AdapterError, match="it was edited"):
        read_calibrations(tmp_path)


def test_layout_and_the_order_of_names_are_no_edit(tmp_path: Path) -> None:
    store_calibration(tmp_path, CALIBRATION)
    raw = json.loads((tmp_path / CALIBRATION_FILE).read_text())
    (tmp_path / CALIBRATION_FILE).write_text(json.dumps(dict(reversed(raw.items())), indent=3))
    assert read_calibrations(tmp_path) == (CALIBRATION,)


# What a server could not work with, and the refusal.
NONSENSE: dict[str, str] = {
    "no entries": "got 0 calibrations", "the same twice": "no two for", "the same dtype twice": "no two for the same",
    "no forms": "0.rows.forms", "another form": "0.rows.forms", "rows without end": "0.rows.n_rows",
    "choices without end": "0.rows.most_choices", "a count without end": "0.reliability.14.count",
    "a bin without a confidence": "with confidence None",
    "an unknown field": "bad value at more", "a missing field": "calibrations.0.delta",
    "an unknown field within": "0.binding.gpu", "a number in a string": "0.delta", "draws in a float": "n_samples",
    "an ask below nothing": "delta = -1.0, expected a number from 1e-09 to 0.5", "no fingerprints": "12 hex digits a row",
    "an ask without rows": "asked.0.adapter_digest", "another score": "levels.4.score", "NaN": "levels.4.threshold",
    "infinity": "levels.4.threshold", "a negative threshold": "-0.1", "a target above one": "target_risk = 1.2",
    "a quantile above one": "quantiles.0.quantile", "a bin below nothing": "a reliability bin of -1 answers",
    "a bin of NaN": "reliability.14", "an unknown field of a bin": "reliability.0.x",
    "no such digest": "binding.adapter_digest",
}  # fmt: skip
MORE_NONSENSE: dict[str, tuple[Change, str]] = {
    "one choice": (entry(lambda c: c["rows"].update(fewest_choices=1)), "0.rows.fewest_choices"),
    "too many rows": (entry(lambda c: c["rows"].update(n_rows=MAX_ROWS + 1)), "0.rows.n_rows"),
    "a seed below nothing": (entry(lambda c: c["rows"].update(seed=-1)), "0.rows.seed"),
    "a seed of 64 bits": (entry(lambda c: c["rows"].update(seed=2**63)), "0.rows.seed"),
    "a digest of no rows": (entry(lambda c: c["rows"].update(digest="sha256:")), "0.rows.digest"),
    "no form": (entry(lambda c: c["rows"].update(forms=[])), "0.rows.forms"),
    "no ask": (entry(lambda c: c.update(asks=[])), "calibrations.0.asks"),
    "too many levels": (entry(lambda c: c.update(levels=c["levels"] * MAX_ENTRIES)), "calibrations.0.levels"),
    "each target twice": (
        entry(lambda c: c["levels"].extend(c["levels"])),
        "targets 0.01, 0.02, .*, expected each once",
    ),
    "too long a curve": (entry(lambda c: c.update(curve=c["curve"] * 2)), "calibrations.0.curve"),
    "a risk above one": (entry(lambda c: c["curve"][0].__setitem__(1, 1.5)), "calibrations.0.curve.0"),
    "no delta": (entry(lambda c: c.update(delta=0.0)), "calibrations.0.delta"),
    "an unproved default": (entry(lambda c: c.update(target_risk=0.03)), "default target_risk = 0.03"),
    "a coverage without a quantile": (entry(lambda c: c.update(coverage=0.5)), "default coverage = 0.5"),
    "a coverage of all": (entry(lambda c: c["quantiles"][0].update(coverage=1.0)), "0.quantiles.0.coverage"),
    "a delta of all": (entry(lambda c: c.update(delta=1.0)), "calibrations.0.delta"),
}


@pytest.mark.parametrize("name", [*NONSENSE, *MORE_NONSENSE])
def test_numbers_that_no_server_can_work_with_are_refused_whatever_the_digest(tmp_path: Path, name: str) -> None:
    change, message = MORE_NONSENSE.get(name) or (EDITS[name], NONSENSE[name])
    store_calibration(tmp_path, CALIBRATION)
    rewrite_json(sealed(change))(tmp_path / CALIBRATION_FILE)
    with pytest.raises(AdapterError, match=message) as info:
        read_calibrations(tmp_path)
    assert CALIBRATION_FILE in str(info.value)
    assert "calibrate again" in str(info.value)
