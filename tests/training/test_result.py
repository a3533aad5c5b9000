"""`blora evaluate` and the result objects that it writes."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from blora.adapter import load_adapter
from blora.base_model import load_base_model
from blora.errors import AdapterError, BloraError, ConfigError, DataError
from blora.training.commands import evaluate, train
from tests.training.conftest import REVISION
from tests.training.toys import toy_data, toy_row, train_arguments, write_jsonl

REQUIRED = (
    *("method", "base_model", "dataset", "split", "seed", "n_examples", "n_samples"),
    *("accuracy", "nll", "ece", "brier", "aurc", "seconds", "command", "revision"),
)
METRICS = ("accuracy", "nll", "ece", "brier", "aurc")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory, base_folder: Path, toy_file: Path) -> dict[str, Path]:
    """A trained adapter of each method."""
    folder = tmp_path_factory.mktemp("adapters")
    for method in ("bayesian", "lora"):
        arguments = train_arguments(base_folder, toy_file, folder / method, "--method", method, "--epochs", "1")
        assert train.main([*arguments, "--bank-seed", "4"]) == 0
    return {method: folder / method for method in ("bayesian", "lora")}


@pytest.fixture(scope="module")
def held_out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_jsonl(tmp_path_factory.mktemp("data") / "held_out.jsonl", toy_data(9, seed=3))


def arguments_for(subject: str | Path, data: Path, base_folder: Path, *more: str) -> list[str]:
    common = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32")
    return [str(subject), "--data", str(data), *common, *more]


def results(tmp_path: Path, subject: str | Path, data: Path, base_folder: Path, *more: str) -> list[dict[str, Any]]:
    """Return the result objects that the command writes, fewest draws first."""
    target = tmp_path / "results" / "s{n_samples}.json"
    assert evaluate.main(arguments_for(subject, data, base_folder, "--json", str(target), *more)) == 0
    found = [json.loads(file.read_text()) for file in target.parent.glob("*.json")]
    return sorted(found, key=lambda result: result["n_samples"])


def test_each_count_has_a_result_with_everything_in_it(
    tmp_path: Path, adapters: dict[str, Path], held_out: Path, base_folder: Path
) -> None:
    found = results(tmp_path, adapters["bayesian"], held_out, base_folder, "--n-samples", "1,4,2")
    assert [result["n_samples"] for result in found] == [1, 2, 4]
    for result in found:
        assert [name for name in REQUIRED if name not in result] == []
        assert (result["method"], result["family"]) == ("bayesian", "diagonal")
        assert (result["base_model"], result["dataset"], result["split"]) == ("tiny-llama", "held_out.jsonl", "test")
        assert (result["seed"], result["n_examples"], result["revision"]) == (4, 9, REVISION)
        assert (result["dtype"], result["scoring"]) == ("float32", "text")
        assert all(0 <= result[name] < float("inf") for name in METRICS)
        assert result["seconds"] > 0
        assert result["training"]["settings"]["epochs"] == 1
        assert shlex.split(result["command"])[:3] == ["blora", "evaluate", str(adapters["bayesian"])]
    base = load_base_model(str(base_folder), device="cpu", dtype="float32")
    assert {result["adapter_digest"] for result in found} == {load_adapter(adapters["bayesian"], base).digest}


def test_a_count_is_the_same_alone_and_among_others(
    tmp_path: Path, adapters: dict[str, Path], held_out: Path, base_folder: Path
) -> None:
    among = results(tmp_path / "a", adapters["bayesian"], held_out, base_folder, "--n-samples", "1,3,5")[1]
    alone = results(tmp_path / "b", adapters["bayesian"], held_out, base_folder)
    assert [result["n_samples"] for result in alone] == [3]
    for name in (*METRICS, "mean_confidence", "mean_mutual_information"):
        assert alone[0][name] == pytest.approx(among[name], abs=1e-5)


def test_the_seed_chooses_the_draws(
    tmp_path: Path, adapters: dict[str, Path], held_out: Path, base_folder: Path
) -> None:
    [banks] = results(tmp_path / "a", adapters["bayesian"], held_out, base_folder)
    [same] = results(tmp_path / "b", adapters["bayesian"], held_out, base_folder, "--seed", "4")
    [other] = results(tmp_path / "c", adapters["bayesian"], held_out, base_folder, "--seed", "0")
    assert (same["seed"], other["seed"]) == (4, 0)
    assert same["nll"] == banks["nll"]
    assert other["nll"] != banks["nll"]


def test_plain_lora_has_one_draw_whatever_was_asked_for(
    tmp_path: Path, adapters: dict[str, Path], held_out: Path, base_folder: Path
) -> None:
    [result] = results(tmp_path, adapters["lora"], held_out, base_folder, "--n-samples", "1,8")
    assert (result["method"], result["family"], result["n_samples"]) == ("lora", None, 1)
    assert result["mean_mutual_information"] == pytest.approx(0, abs=1e-9)


def test_the_base_model_alone_is_a_subject(tmp_path: Path, held_out: Path, base_folder: Path) -> None:
    [result] = results(tmp_path, "base", held_out, base_folder)
    assert [name for name in REQUIRED if name not in result] == []
    assert (result["method"], result["n_samples"], result["seed"]) == ("base", 1, None)
    assert result["adapter_digest"] is None
    assert "training" not in result


def test_rows_with_fixed_labels_are_asked_of_the_base_model_as_of_an_adapter(tmp_path: Path, base_folder: Path) -> None:
    rows = [{"prompt": row["question"], "label": row["choices"][row["label"]]} for row in toy_data(9)]
    data = write_jsonl(tmp_path / "fixed.jsonl", rows)
    [result] = results(tmp_path, "base", data, base_folder, "--limit", "5")
    assert result["n_examples"] == 5


def test_rows_that_made_the_adapter_are_counted_with_a_warning(
    tmp_path: Path,
    adapters: dict[str, Path],
    base_folder: Path,
    toy_file: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    capsys.readouterr()
    new = write_jsonl(tmp_path / "new.jsonl", [toy_row(60 + index, index % 2) for index in range(8)])
    [result] = results(tmp_path / "new", adapters["bayesian"], new, base_folder)
    assert result["n_seen"] == 0
    assert "made with" not in capsys.readouterr().err
    [result] = results(tmp_path / "own", adapters["bayesian"], toy_file, base_folder, "--limit", "8")
    assert result["n_seen"] == 8
    assert "the adapter was made with 8 of these 8 rows, such as " in capsys.readouterr().err


def test_the_first_rows_may_be_enough(tmp_path: Path, held_out: Path, base_folder: Path) -> None:
    [result] = results(tmp_path / "a", "base", held_out, base_folder, "--limit", "4", "--split", "validation")
    few = write_jsonl(tmp_path / "few.jsonl", toy_data(9, seed=3)[:4])
    [expected] = results(tmp_path / "b", "base", few, base_folder)
    assert (result["n_examples"], result["split"]) == (4, "validation")
    assert result["nll"] == pytest.approx(expected["nll"], abs=1e-5)


@pytest.mark.parametrize("limit", ["0", "-3"])
def test_a_limit_that_leaves_nothing_or_cuts_the_end_is_refused(held_out: Path, base_folder: Path, limit: str) -> None:
    with pytest.raises((BloraError, SystemExit)):
        evaluate.main(arguments_for("base", held_out, base_folder, "--limit", limit))


def test_a_line_for_each_number_of_draws_and_one_for_each_choice_are_printed(
    tmp_path: Path, adapters: dict[str, Path], held_out: Path, base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few, most = results(tmp_path, adapters["bayesian"], held_out, base_folder, "--n-samples", "1,2")
    metrics, choices = (part.splitlines() for part in capsys.readouterr().out.split("\n\n"))
    assert [line.split()[0] for line in metrics] == ["1", "2"]
    assert all(f" {name} " in line for line in metrics for name in METRICS)
    assert [line.split() for line in choices[1:]] == [[str(n) for n in row.values()] for row in most["choices"]]
    for result in (few, most):
        n_wrong = round((1 - result["accuracy"]) * 9)
        assert sum(row["n_wrong"] for row in result["choices"]) == n_wrong
        assert sum(row["n_missed"] for row in result["choices"]) == n_wrong
        assert sum(row["n_rows"] for row in result["choices"]) == 9


def test_questions_with_choices_of_their_own_are_not_counted_by_choice(
    tmp_path: Path, adapters: dict[str, Path], base_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [toy_row(50, 0), toy_row(51, 1) | {"choices": ["hot", "cold"]}]
    data = write_jsonl(tmp_path / "own.jsonl", rows)
    [result] = results(tmp_path, adapters["bayesian"], data, base_folder)
    assert result["choices"] == []
    assert len(capsys.readouterr().out.splitlines()) == 1


def test_several_results_do_not_share_a_file(adapters: dict[str, Path], held_out: Path, base_folder: Path) -> None:
    with pytest.raises(ConfigError, match=r"got one file r\.json for 2 results, expected \{n_samples\} in its name"):
        evaluate.main(
            arguments_for(adapters["bayesian"], held_out, base_folder, "--n-samples", "1,2", "--json", "r.json")
        )


def test_a_result_is_no_folder(adapters: dict[str, Path], held_out: Path, base_folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="got the folder .* for --json, expected a file in it"):
        evaluate.main(arguments_for(adapters["lora"], held_out, base_folder, "--json", str(tmp_path)))


def test_a_result_takes_the_place_of_an_earlier_one_and_of_no_other_file(
    adapters: dict[str, Path], held_out: Path, base_folder: Path, tmp_path: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_bytes(held_out.read_bytes())
    note = tmp_path / "note.json"
    note.write_text('{"n_samples": 3}')
    for file in (rows, note):
        before = file.read_bytes()
        with pytest.raises(
            ConfigError, match=f"got {file} for --json, which is no earlier result, expected a new file"
        ):
            evaluate.main(arguments_for(adapters["lora"], rows, base_folder, "--json", str(file)))
        assert file.read_bytes() == before
    for _ in range(2):
        assert (
            evaluate.main(arguments_for(adapters["lora"], rows, base_folder, "--json", str(tmp_path / "r.json"))) == 0
        )


@pytest.mark.parametrize("counts", ["0", "-1", "1,x", "", "1,,2"])
def test_counts_are_positive_numbers(held_out: Path, base_folder: Path, counts: str) -> None:
    with pytest.raises(SystemExit) as caught:
        evaluate.main(arguments_for("base", held_out, base_folder, f"--n-samples={counts}"))
    assert caught.value.code == 2


def test_an_adapter_that_is_none_is_refused(tmp_path: Path, held_out: Path, base_folder: Path) -> None:
    with pytest.raises(AdapterError, match="got adapter .*nowhere, expected an existing directory"):
        evaluate.main(arguments_for(tmp_path / "nowhere", held_out, base_folder))


def test_rows_that_break_the_adapters_label_set_are_refused(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    arguments = train_arguments(base_folder, toy_file, tmp_path / "toy", "--choices", "warm|cold", "--epochs", "1")
    assert train.main(arguments) == 0
    rows = [row | {"choices": ["cold", "warm"]} for row in toy_data(2)]
    other = write_jsonl(tmp_path / "other.jsonl", rows)
    with pytest.raises(DataError, match=r"other.jsonl:1: got choices .*\n.*other.jsonl:2: got choices"):
        evaluate.main(arguments_for(tmp_path / "toy", other, base_folder))


def test_columns_of_the_rows_may_have_other_names(tmp_path: Path, base_folder: Path) -> None:
    rows = [{"body": row["question"], "choices": row["choices"], "right": row["label"]} for row in toy_data(6)]
    file = write_jsonl(tmp_path / "rows.jsonl", rows)
    [mapped] = results(tmp_path, "base", file, base_folder, "--columns", "question=body, label=right")
    assert mapped["n_examples"] == 6
    for wrong in ("question", "question=body,question=text"):
        with pytest.raises(SystemExit):
            evaluate.main(arguments_for("base", file, base_folder, "--columns", wrong))
