"""`blora calibrate` on a tiny base model, and the calibration.json that it writes."""

import dataclasses
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import attach, load_adapter
from blora.adapter.calibration_file import CALIBRATION_FILE, read_calibrations
from blora.base_model import load_base_model
from blora.decision.calibrate import calibrate as prove
from blora.decision.calibration import Calibration, Goal
from blora.decision.temperature import temper
from blora.errors import AdapterError, ConfigError, DataError, NumericalError
from blora.posterior.bank import SampleBank
from blora.scores import DRAWN, SCORES
from blora.training.calibrate import calibrate_adapter
from blora.training.commands import calibrate, train
from blora.training.evaluate import predict_all, predict_with_distances
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import pack_examples
from tests.blora.adapter.test_calibration_file import asked
from tests.blora.adapters import rewrite_json
from tests.training.toys import toy_row, train_arguments, write_jsonl

GOAL = ("--target-risk", "0.2", "--delta", "0.1")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, toy_file: Path) -> Path:
    adapter = tmp_path_factory.mktemp("adapters") / "toy"
    arguments = train_arguments(base_folder, toy_file, adapter, "--epochs", "1")
    assert train.main([*arguments, "--bank-seed", "4"]) == 0
    return adapter


@pytest.fixture
def adapter(trained: Path) -> Path:
    (trained / CALIBRATION_FILE).unlink(missing_ok=True)
    return trained


def labelled_by(adapter: Path, base_folder: Path, file: Path, *, wrongly: bool = False) -> Path:
    """Sixty rows whose labels are all equal to the adapter's answers, or all different."""
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    loaded = load_adapter(adapter, base)
    attach(base, loaded)
    rows = [toy_row(100 + index, index % 2) for index in range(60)]
    packed = pack_examples(read_examples(str(write_jsonl(file, rows))), base, loaded.config.prompt)
    sampling = loaded.config.sampling
    draws = SampleBank.draw(loaded.posterior, loaded.digest, sampling.n_samples, sampling.seed).draws
    answers = (
        temper(predict_all(base.model, packed, draws), sampling.temperature, sampling.lapse).mean(0).argmax(-1).tolist()
    )
    return write_jsonl(file, [row | {"label": abs(top - wrongly)} for row, top in zip(rows, answers, strict=True)])


@pytest.fixture(scope="module")
def unseen(tmp_path_factory: pytest.TempPathFactory, trained: Path, base_folder: Path) -> Path:
    """Rows that the adapter gets right."""
    return labelled_by(trained, base_folder, tmp_path_factory.mktemp("data") / "unseen.jsonl")


def run(adapter: Path, data: Path, base_folder: Path, *more: str) -> tuple[Calibration, ...]:
    common = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32")
    assert calibrate.main([str(adapter), "--data", str(data), *common, *GOAL, *more]) == 0
    return read_calibrations(adapter)


def test_what_is_written_is_of_the_adapters_own_bank(adapter: Path, unseen: Path, base_folder: Path) -> None:
    [calibration] = run(adapter, unseen, base_folder)
    loaded = load_adapter(adapter, load_base_model(str(base_folder), device="cpu", dtype="float32"))
    binding = calibration.binding
    assert (binding.adapter_digest, binding.dtype, binding.scoring) == (loaded.digest, "float32", "text")
    assert (binding.n_samples, binding.seed, binding.temperature) == (3, 4, loaded.config.sampling.temperature)
    rows = calibration.rows
    assert (rows.source, rows.digest, rows.split) == ("unseen.jsonl", read_examples(str(unseen)).digest, "test")
    assert (rows.n_rows, rows.n_proof, rows.seed) == (60, 45, 0)
    assert (rows.forms, rows.fewest_choices, rows.most_choices) == (("prompt",), 2, 2)
    # The labels are the answers of the adapter's own bank at its own temperature.
    assert calibration.curve[-1] == (1.0, 0.0)


def test_a_table_says_what_was_proved(
    adapter: Path, unseen: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [calibration] = run(adapter, unseen, base_folder)
    told = capsys.readouterr().out
    assert "Proved on 45 of 60 rows, in float32 with 3 draws, each at delta 0.1:" in told
    assert f"*    0.2  {calibration.default_level.score}" in told
    assert "    0.01  not proved" in told
    assert "Prediction sets of coverage 0.9" in told
    assert "For questions like these rows: prompt, 2 choices." in told
    assert "another answer" not in told


def test_a_limit_for_each_choice_is_proved_and_the_proofs_rows_are_told_by_choice(
    adapter: Path, unseen: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    [calibration] = run(adapter, unseen, base_folder, "--max-missed", "0.5")
    assert calibration.asks[-1].max_missed == 0.5
    told = capsys.readouterr().out
    assert "Of the questions of each choice, at most 0.5 get another answer, under every target." in told
    by_choice = told.split("by their answer, under the default policy:\n\n")[1].splitlines()
    for line, counts in zip(by_choice[1:], calibration.choices, strict=True):
        assert line.split() == [str(value) for value in dataclasses.astuple(counts)]


def test_a_limit_for_each_choice_needs_rows_of_each_before_the_work(
    adapter: Path, unseen: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("blora.training.calibrate.predict_with_distances", None)
    labels = [json.loads(line)["label"] for line in unseen.read_text().splitlines()]
    fewest = min(labels.count(0), labels.count(1))  # of which the proof has about three in four
    limit = 1 - 0.1 ** (1 / fewest) + 1e-6
    for share, needed in ((0.01, 230), (limit, fewest)):
        told = rf"rows of the choice .* at delta 0.1, expected at least {needed} of each choice"
        with pytest.raises(ConfigError, match=told):
            run(adapter, unseen, base_folder, "--max-missed", str(share))


def test_each_ask_of_the_same_rows_adds_to_delta_and_a_refused_one_is_remembered(
    adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # A fifth of the labels is wrong: 15 % and 18 % are not proved, 50 % is.
    rows = [json.loads(line) for line in unseen.read_text().splitlines()]
    noisy = write_jsonl(
        tmp_path / "noisy.jsonl", [r | {"label": r["label"] ^ (k % 5 == 0)} for k, r in enumerate(rows)]
    )
    for target, spent in (("0.15", "0.1"), ("0.18", "0.2")):
        with pytest.raises(ConfigError, match=f"The rows are used up at delta {spent}: another calibration attempt"):
            run(adapter, noisy, base_folder, "--target-risk", target)
        assert read_calibrations(adapter) == ()
    [calibration] = run(adapter, noisy, base_folder, "--target-risk", "0.5")
    assert [ask.target_risk for ask in calibration.asks] == [0.15, 0.18, 0.5]
    assert calibration.delta == 0.3
    assert "each at delta 0.3, summed over 3 calibration attempts on these rows:" in capsys.readouterr().out
    # The same ask again is no other chance; the first rows of the file are other rows, and have been asked.
    assert run(adapter, noisy, base_folder, "--target-risk", "0.5") == (calibration,)
    [fewer] = run(adapter, noisy, base_folder, "--target-risk", "0.5", "--limit", "50")
    assert fewer.delta == 0.4
    # Half of the rows in another file have been asked, fresh rows have not.
    half = [row | ({} if k % 2 else {"question": f"fresh {k}?"}) for k, row in enumerate(rows)]
    fresh = [row | {"question": f"new {k}?"} for k, row in enumerate(rows)]
    for name, data, asks in (("half", half, 5), ("fresh", fresh, 1)):
        [other] = run(adapter, write_jsonl(tmp_path / f"{name}.jsonl", data), base_folder, "--target-risk", "0.9")
        assert (name, len(other.asks)) == (name, asks)


def test_plain_rows_about_one_text_are_thinned_to_one(
    adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in unseen.read_text().splitlines()]
    more = [row | {"choices": [*row["choices"], "mild"]} for row in rows[:5]]
    [calibration] = run(adapter, write_jsonl(tmp_path / "more.jsonl", rows + more), base_folder, "--target-risk", "0.9")
    assert calibration.rows.n_rows == 60
    assert "calibrating on 60 of 65 questions, one for each text" in caplog.text


def test_a_second_question_about_every_text_makes_another_attempt(
    adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path
) -> None:
    rows = [json.loads(line) for line in unseen.read_text().splitlines()]
    data = write_jsonl(tmp_path / "two.jsonl", rows + [row | {"choices": [*row["choices"], "mild"]} for row in rows])
    [first] = run(adapter, unseen, base_folder, "--target-risk", "0.9")
    [both] = run(adapter, data, base_folder, "--target-risk", "0.9")
    assert first.rows.n_rows == both.rows.n_rows == 60  # one for each text
    assert (len(both.asks), both.delta) == (2, 2 * first.delta)


def test_rows_whose_delta_is_spent_are_refused_before_the_work(
    adapter: Path, unseen: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in "01":
        run(adapter, unseen, base_folder, "--delta", "0.4", "--seed", seed)
    before = (adapter / CALIBRATION_FILE).read_bytes()
    monkeypatch.setattr("blora.training.calibrate.predict_with_distances", None)
    with pytest.raises(ConfigError, match="got 3 calibration attempts on the same rows with a delta of 1 in total"):
        run(adapter, unseen, base_folder, "--delta", "0.2", "--seed", "2")
    assert (adapter / CALIBRATION_FILE).read_bytes() == before


def test_a_score_that_needs_more_draws_is_refused_before_the_work(
    adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    single = Path(shutil.copytree(adapter, tmp_path / "single"))
    rewrite_json(lambda raw: raw["sampling"].update(n_samples=1))(single / "bayesian_config.json")
    monkeypatch.setattr("blora.training.calibrate.predict_with_distances", None)
    with pytest.raises(ConfigError, match="got score mutual_information with n_samples = 1, .* such as confidence"):
        run(single, unseen, base_folder, "--score", "mutual_information")
    assert not (single / CALIBRATION_FILE).exists()


def test_scores_that_are_not_finite_use_no_rows_up(
    adapter: Path, unseen: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def spoilt(*args: Any, **named: Any) -> Any:
        return predict_all(*args[:3]) * math.nan, None

    monkeypatch.setattr("blora.training.calibrate.predict_with_distances", spoilt)
    with pytest.raises(NumericalError, match="score in float32"):
        run(adapter, unseen, base_folder)
    assert not (adapter / CALIBRATION_FILE).exists()


def test_the_seed_divides_the_rows_and_the_limit_cuts_them(adapter: Path, unseen: Path, base_folder: Path) -> None:
    [first] = run(adapter, unseen, base_folder)
    [again] = run(adapter, unseen, base_folder)
    assert again == first
    [other] = run(adapter, unseen, base_folder, "--seed", "1", "--limit", "40", "--coverage", "0.8")
    assert (other.rows.seed, other.rows.n_rows, other.coverage) == (1, 40, 0.8)


def test_the_limit_counts_rows_of_different_texts(
    adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    rows = [json.loads(line) for line in unseen.read_text().splitlines()]
    pairs = [(row, row | {"choices": [f"{choice} so" for choice in row["choices"]]}) for row in rows]
    both = write_jsonl(tmp_path / "both.jsonl", [row for pair in pairs for row in pair])
    [calibration] = run(adapter, both, base_folder, "--target-risk", "0.7", "--limit", "50")
    assert calibration.rows.n_rows == 50
    assert "calibrating on 50 of 100 questions, one for each text" in caplog.text


def test_each_dtype_has_its_own(adapter: Path, unseen: Path, base_folder: Path) -> None:
    run(adapter, unseen, base_folder)
    both = run(adapter, unseen, base_folder, "--dtype", "bfloat16", "--target-risk", "0.7")
    assert [calibration.binding.dtype for calibration in both] == ["float32", "bfloat16"]
    # Whoever chose 0.7 may have seen what the other dtype proved; so may whoever asks for the same in both.
    assert [calibration.delta for calibration in both] == [0.1, 0.2]
    both = run(adapter, unseen, base_folder, "--dtype", "bfloat16")
    assert [len(calibration.asks) for calibration in both] == [1, 3]
    assert [ask.dtype for ask in both[1].asks] == ["float32", "bfloat16", "bfloat16"]


def test_an_impossible_target_is_refused_and_leaves_the_calibration(
    adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path
) -> None:
    run(adapter, unseen, base_folder)
    before = read_calibrations(adapter)
    wrong = labelled_by(adapter, base_folder, tmp_path / "wrong.jsonl", wrongly=True)
    with pytest.raises(
        ConfigError, match="got target_risk 0.2, which these 60 rows do not prove at delta 0.1, expected"
    ):
        run(adapter, wrong, base_folder)
    with pytest.raises(ConfigError, match="got 60 rows for target_risk 0.01 .* expected at least 306"):
        run(adapter, unseen, base_folder, "--target-risk", "0.01")
    assert read_calibrations(adapter) == before


def test_rows_that_made_the_adapter_are_refused(
    adapter: Path, toy_file: Path, base_folder: Path, tmp_path: Path
) -> None:
    renamed = write_jsonl(tmp_path / "renamed.jsonl", [json.loads(line) for line in toy_file.read_text().splitlines()])
    for data in (toy_file, renamed):
        with pytest.raises(ConfigError, match="played no part in making it; use other rows"):
            run(adapter, data, base_folder, "--limit", "15")
    assert not (adapter / CALIBRATION_FILE).exists()


def as_chat(row: dict[str, Any]) -> dict[str, Any]:
    chat = {key: value for key, value in row.items() if key != "question"}
    return chat | {"messages": [{"role": "user", "content": row["question"]}]}


def test_chats_are_recorded_as_messages(adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path) -> None:
    rows = map(json.loads, unseen.read_text().splitlines())
    chats = write_jsonl(tmp_path / "chats.jsonl", map(as_chat, rows))
    [calibration] = run(adapter, chats, base_folder, "--target-risk", "0.9")
    assert calibration.rows.forms == ("messages",)


@pytest.mark.parametrize("label", [0, 1])
def test_single_rows_that_made_the_adapter_are_refused(
    adapter: Path, toy_file: Path, unseen: Path, base_folder: Path, tmp_path: Path, label: int
) -> None:
    made_with = json.loads(toy_file.read_text().splitlines()[3]) | {"label": label}
    mixed = tmp_path / "mixed.jsonl"
    write_jsonl(mixed, [*map(json.loads, unseen.read_text().splitlines()), made_with])
    with pytest.raises(DataError, match=rf"1 of 61 questions .* expected none: {mixed}:61 \((train|validation)\)"):
        run(adapter, mixed, base_folder)
    assert not (adapter / CALIBRATION_FILE).exists()
    run(adapter, mixed, base_folder, "--limit", "60")


def test_a_row_that_comes_twice_is_refused(adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path) -> None:
    lines = unseen.read_text().splitlines()
    twice = tmp_path / "twice.jsonl"
    write_jsonl(twice, map(json.loads, [*lines, lines[4]]))
    with pytest.raises(DataError, match=f"same question twice in twice.jsonl, .*: {twice}:5 and {twice}:61"):
        run(adapter, twice, base_folder)


def test_an_adapter_that_remembers_no_rows_is_calibrated_all_the_same(
    trained: Path, base_folder: Path, toy_file: Path, tmp_path: Path
) -> None:
    old = tmp_path / "old"
    shutil.copytree(trained, old)
    (old / CALIBRATION_FILE).unlink(missing_ok=True)
    config = json.loads((old / "bayesian_config.json").read_text())
    del config["training"]["seen"]
    (old / "bayesian_config.json").write_text(json.dumps(config))
    run(old, labelled_by(old, base_folder, tmp_path / "unseen.jsonl"), base_folder)
    with pytest.raises(ConfigError, match="played no part in making it; use other rows"):
        run(old, toy_file, base_folder)


def test_rows_that_chose_the_adapter_are_refused(
    tmp_path: Path, base_folder: Path, toy_file: Path, unseen: Path
) -> None:
    arguments = train_arguments(base_folder, toy_file, tmp_path / "toy", "--validation", str(unseen), "--epochs", "1")
    assert train.main(arguments) == 0
    with pytest.raises(ConfigError, match="which is the adapter's validation data, expected rows that played no part"):
        run(tmp_path / "toy", unseen, base_folder)


def test_a_spoilt_file_is_told_before_the_work(adapter: Path, unseen: Path, base_folder: Path) -> None:
    (adapter / CALIBRATION_FILE).write_text("{}")
    with pytest.raises(AdapterError, match="format_version None"):
        run(adapter, unseen, base_folder)


@pytest.mark.parametrize(
    ("flag", "value"),
    [("--target-risk", "0"), ("--delta", "0.7"), ("--delta", "4e-13"), ("--coverage", "1"), ("--seed", "-1")],
)
def test_goals_that_make_no_sense_are_refused_before_anything_loads(
    tmp_path: Path, flag: str, value: str, base_folder: Path
) -> None:
    with pytest.raises(ConfigError, match=flag.removeprefix("--").replace("-", "_")):
        run(tmp_path / "nowhere", tmp_path / "nothing.jsonl", base_folder, flag, value)


def test_an_adapter_that_was_replaced_since_it_was_loaded_is_not_calibrated(
    adapter: Path, unseen: Path, base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "toy"))
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    old = load_adapter(folder, base)
    rewrite_json(lambda raw: raw["training"].update(command="another"))(folder / "bayesian_config.json")
    [current] = run(folder, unseen, base_folder)
    with pytest.raises(AdapterError, match="whose files have changed since it was loaded, expected the same: load it"):
        calibrate_adapter(old, base, read_examples(str(unseen)), Goal(target_risk=0.2, delta=0.1))
    assert read_calibrations(folder) == (current,)


@pytest.mark.parametrize(("step", "work", "n_asks"), [("SampleBank.draw", SampleBank.draw, 0), ("calibrate", prove, 1)])
def test_an_adapter_that_changes_during_the_work_is_not_calibrated(
    adapter: Path,
    unseen: Path,
    base_folder: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    step: str,
    work: Callable[..., Any],
    n_asks: int,
) -> None:
    folder = Path(shutil.copytree(adapter, tmp_path / "toy"))

    def meanwhile(*args: Any, **named: Any) -> Any:
        rewrite_json(lambda raw: raw["training"].update(command="another"))(folder / "bayesian_config.json")
        return work(*args, **named)

    monkeypatch.setattr(f"blora.training.calibrate.{step}", meanwhile)
    with pytest.raises(AdapterError, match="whose files have changed since it was loaded, expected the same: load it"):
        run(folder, unseen, base_folder)
    assert (read_calibrations(folder), len(asked(folder))) == ((), n_asks)


def test_an_ask_during_the_scoring_counts(
    adapter: Path, unseen: Path, base_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def meanwhile(*args: Any, **named: Any) -> Any:
        monkeypatch.undo()
        run(adapter, unseen, base_folder, "--target-risk", "0.3")
        return predict_with_distances(*args, **named)

    monkeypatch.setattr("blora.training.calibrate.predict_with_distances", meanwhile)
    [calibration] = run(adapter, unseen, base_folder)
    assert calibration.delta == pytest.approx(0.2)


def test_the_file_is_json_that_others_can_read(adapter: Path, unseen: Path, base_folder: Path) -> None:
    run(adapter, unseen, base_folder)
    raw: dict[str, Any] = json.loads((adapter / CALIBRATION_FILE).read_text())
    assert raw["calibrations"][0]["binding"]["dtype"] == "float32"


@pytest.mark.parametrize("score", [name for name in SCORES if name in DRAWN])
def test_every_score_of_the_draws_may_be_planned(score: str) -> None:
    assert calibrate._parser().parse_args(["a", "--data", "x", "--score", score]).score == score
