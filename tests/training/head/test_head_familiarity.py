"""The familiarity of a trained adapter with a head: in its files, its answers and its calibration."""

import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import blora
from blora.adapter import load_adapter, read_config
from blora.adapter.calibration_file import read_calibrations
from blora.adapter.folder import FAMILIARITY_FILE
from blora.adapter.opening import open_adapter, open_base
from blora.base_model import BaseModel
from blora.cli import main
from blora.decision.familiarity import Familiarity, p_value
from blora.errors import AdapterError, ConfigError, PromptError
from blora.inference.packing import pack
from blora.questions.fingerprints import fingerprint
from blora.training.head.features import read_features
from tests.blora.adapters import rewrite_json, rewrite_tensors
from tests.training.head.test_fit import arguments, fixed
from tests.training.toys import CHOICES, toy_data, toy_row, write_jsonl

FOREIGN = ("%%%% &&&& @@@@", "ZZZZZZZZZZZZZZZZ", "0101010101010101", "!?!?!?!?!?!?!?")


def rows_of(start: int, stop: int) -> list[dict[str, Any]]:
    """Rows like the training rows, which are the first ones."""
    return fixed([toy_row(index, index % 2) for index in range(start, stop)])


def distance_alone(base: BaseModel, familiarity: Familiarity, prompt: tuple[int, ...]) -> Tensor:
    """Return the distance (1,) of a prompt by a plain forward pass of it alone."""
    with torch.no_grad():
        found = base.model(input_ids=torch.tensor([prompt]), output_hidden_states=True).hidden_states
    states = torch.cat([found[depth][0].float().mean(0) for depth in familiarity.config.depths])
    return familiarity.distance(states[None])


def of_file(folder: Path, change: Any) -> None:
    rewrite_tensors(change)(folder / FAMILIARITY_FILE)


def of_settings(folder: Path, **changes: Any) -> None:
    rewrite_json(lambda raw: raw["familiarity"].update(changes))(folder / "bayesian_config.json")


@pytest.fixture(scope="module")
def familiar(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a head and sixty validation rows, which are the reference of its familiarity."""
    folder = tmp_path_factory.mktemp("familiar")
    data = write_jsonl(folder / "rows.jsonl", fixed(toy_data(60)))
    others = write_jsonl(folder / "others.jsonl", rows_of(100, 160))
    assert main(arguments(base_folder, data, folder / "toy", "--validation", str(others))) == 0
    return folder / "toy"


@pytest.fixture(scope="module")
def gated(familiar: Path, base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same adapter, calibrated."""
    folder = tmp_path_factory.mktemp("gated")
    rows = write_jsonl(folder / "rest.jsonl", rows_of(200, 400))
    toy = Path(shutil.copytree(familiar, folder / "toy"))
    common = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32")
    flags = ("--target-risk", "0.2", "--max-false-alarms", "0.1")
    assert main(["calibrate", str(toy), "--data", str(rows), *flags, *common]) == 0
    return toy


def opened(folder: Path, base_folder: Path) -> blora.Model:
    return blora.load(folder, base_model=str(base_folder), dtype="float32")


def tuned(adapter: Path, base_folder: Path, folder: Path, rows: list[dict[str, Any]]) -> Familiarity:
    """Tune an adapter on rows, write it to the folder as `toy`, and return its familiarity."""
    data, base = write_jsonl(folder / "rows.jsonl", rows), open_base(str(base_folder), device="cpu", dtype="float32")
    command = ["tune", str(adapter), "--data", str(data), "--output", str(folder / "toy")]
    assert main([*command, "--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32"]) == 0
    found = load_adapter(folder / "toy", base).familiarity
    assert found is not None
    return found


def beginning_of_guesses(folder: Path) -> float:
    """Return the distance beyond which an adapter's answers are guesses."""
    config = read_config(folder).familiarity
    assert config is not None
    assert config.guesses_beyond is not None
    return config.guesses_beyond


def foreign_distance(familiarity: Familiarity, folder: Path, base_folder: Path) -> float:
    """Return the distance of a foreign text, by the familiarity of the adapter in the folder."""
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    config = read_config(folder).prompt
    row = pack(base.tokenizer, prompt=FOREIGN[0], choices=CHOICES, config=config, max_length=200)
    return float(distance_alone(base, familiarity, row.prompt))


def test_training_writes_a_familiarity_of_the_heads_states(familiar: Path) -> None:
    config = read_config(familiar)
    assert (familiar / FAMILIARITY_FILE).exists()
    assert config.head is not None
    assert config.familiarity is not None
    assert (config.familiarity.depths, config.familiarity.n_reference) == (config.head.depths, 60)


def test_foreign_texts_are_less_familiar_than_texts_like_the_training_rows(familiar: Path, base_folder: Path) -> None:
    model = opened(familiar, base_folder)
    like = model.predict([row["prompt"] for row in rows_of(500, 530)])
    foreign = model.predict(FOREIGN)
    known, unknown = ([answer.familiarity for answer in answers] for answers in (like, foreign))
    assert all(value is not None and 0 < value <= 1 for value in (*known, *unknown))
    assert np.mean(known) > 0.3 > 0.1 > np.mean(unknown)  # type: ignore[arg-type]  # none is None


def test_the_familiarity_of_an_answer_is_the_p_value_of_plain_forward_passes(
    familiar: Path, gated: Path, base_folder: Path
) -> None:
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    asked = [*(row["question"] for row in toy_data(20, seed=9)), *FOREIGN]
    for folder in (familiar, gated):
        adapter = load_adapter(folder, base)
        calibrations, familiarity = read_calibrations(folder), adapter.familiarity
        assert familiarity is not None
        gate = calibrations[0].gate if calibrations else None
        reference = torch.tensor(gate.reference) if gate is not None else familiarity.reference
        for question, answer in zip(asked, opened(folder, base_folder).predict(asked), strict=True):
            row = pack(base.tokenizer, prompt=question, choices=CHOICES, config=adapter.config.prompt, max_length=200)
            distance = distance_alone(base, familiarity, row.prompt)
            least, most = (float(p_value(distance + rounding, reference)) for rounding in (1e-3, -1e-3))
            assert answer.familiarity is not None
            assert least - 1e-6 <= answer.familiarity <= most + 1e-6


def test_an_evaluation_is_of_the_answers_with_their_guesses(familiar: Path, base_folder: Path, tmp_path: Path) -> None:
    base = open_base(str(base_folder), device="cpu", dtype="float32")
    own = load_adapter(familiar, base).familiarity
    assert own is not None
    farthest = float(own.reference.max())
    assert own.config.guesses_beyond is not None
    assert own.config.guesses_beyond > farthest  # sixty rows say little about the tail
    folder = Path(shutil.copytree(familiar, tmp_path / "toy"))
    of_settings(folder, guesses_beyond=farthest)
    bare = Path(shutil.copytree(familiar, tmp_path / "bare"))
    of_settings(bare, guesses_beyond=None)
    rows = [*rows_of(500, 510), *({"prompt": text, "label": CHOICES[0]} for text in FOREIGN)]
    data = write_jsonl(tmp_path / "rows.jsonl", rows)
    model, unaware = opened(folder, base_folder), opened(bare, base_folder)
    given = [
        {one.choice: one.probability for one in answer.probabilities}
        for answer in model.predict([row["prompt"] for row in rows])
    ]
    nll = -np.mean([np.log(probs[row["label"]]) for probs, row in zip(given, rows, strict=True)])
    assert model.evaluate(str(data)).metrics.nll == pytest.approx(nll, abs=1e-4)
    assert all(abs(probs[CHOICES[0]] - 0.5) <= 0.05 for probs in given[-len(FOREIGN) :])
    assert unaware.evaluate(str(data)).metrics.nll != pytest.approx(nll, abs=1e-3)


@pytest.mark.parametrize("n_rows", [1, 19, 25])
def test_a_tuning_on_few_rows_knows_the_reference_too(
    n_rows: int, familiar: Path, base_folder: Path, tmp_path: Path
) -> None:
    begin = beginning_of_guesses(familiar)
    found = tuned(familiar, base_folder, tmp_path, rows_of(500, 500 + n_rows))
    assert float(found.reference.max()) < beginning_of_guesses(tmp_path / "toy") < begin + 0.1  # more rows, nearer


def test_rows_of_the_reference_count_once_in_a_tuning(familiar: Path, base_folder: Path, tmp_path: Path) -> None:
    tuned(familiar, base_folder, tmp_path, rows_of(100, 160))
    assert beginning_of_guesses(tmp_path / "toy") == pytest.approx(beginning_of_guesses(familiar), abs=0.05)


def test_a_tuning_reads_each_row_once(
    familiar: Path, base_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted: list[int] = []

    def spy(model: Any, rows: Any, *more: Any) -> Any:
        counted.append(len(rows))
        return read_features(model, rows, *more)

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("the rows were scored by passes of their own")

    monkeypatch.setattr("blora.training.tune.read_features", spy)
    monkeypatch.setattr("blora.training.evaluate.score_all", never)
    tuned(familiar, base_folder, tmp_path, rows_of(500, 530))
    assert counted == [30]


@pytest.mark.parametrize("before", ["", fingerprint(FOREIGN[0])], ids=["new", "validated on, outside the reference"])
def test_no_row_of_a_tuning_gets_guesses(before: str, familiar: Path, base_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(familiar, tmp_path / "before"))
    rewrite_json(lambda raw: raw["training"]["seen"].update(reference=before))(folder / "bayesian_config.json")
    far = {"prompt": FOREIGN[0], "label": CHOICES[0]}
    found = tuned(folder, base_folder, tmp_path, [*rows_of(500, 510), far])
    assert beginning_of_guesses(familiar) < foreign_distance(found, folder, base_folder)
    assert foreign_distance(found, folder, base_folder) < beginning_of_guesses(tmp_path / "toy")


def test_a_row_that_the_distance_was_fitted_to_does_not_tell_where_guesses_begin(
    familiar: Path, base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(familiar, tmp_path / "before"))
    seen = {"familiarity": fingerprint(FOREIGN[0])}  # which lies beyond the reference
    rewrite_json(lambda raw: raw["training"]["seen"].update(seen))(folder / "bayesian_config.json")
    found = tuned(folder, base_folder, tmp_path, [*rows_of(100, 160), {"prompt": FOREIGN[0], "label": CHOICES[0]}])
    # Where guesses begin depends on what they cost each row too, but not on how far this row is.
    assert beginning_of_guesses(tmp_path / "toy") < foreign_distance(found, folder, base_folder)


def test_beyond_the_gate_of_a_calibration_questions_get_no_answer(gated: Path, base_folder: Path) -> None:
    [calibration] = read_calibrations(gated)
    gate = calibration.gate
    assert gate is not None
    assert (gate.max_false_alarms, len(gate.reference)) == (0.1, calibration.rows.n_proof)
    model = opened(gated, base_folder)
    for answer in model.predict(FOREIGN):
        assert answer.policy is not None
        assert answer.policy.min_familiarity == gate.min_familiarity
        assert answer.abstained
        assert "unfamiliar_question" in {reason.reason for reason in answer.abstain_reasons}
    like = model.predict([row["prompt"] for row in rows_of(500, 530)])
    assert np.mean([answer.abstained for answer in like]) < 0.3


def test_a_share_of_one_calibrates_without_a_gate(gated: Path, base_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(gated, tmp_path / "toy"))
    rows = write_jsonl(tmp_path / "rest.jsonl", rows_of(600, 700))
    common = ("--base-model", str(base_folder), "--device", "cpu", "--dtype", "float32", "--target-risk", "0.2")
    assert main(["calibrate", str(folder), "--data", str(rows), "--max-false-alarms", "1", *common]) == 0
    [calibration] = read_calibrations(folder)
    assert calibration.gate is None
    answer = opened(folder, base_folder).predict("red 01")
    assert answer.familiarity is not None
    assert answer.policy is not None
    assert answer.policy.min_familiarity is None


def test_a_threshold_on_a_familiarity_that_an_adapter_lacks_is_refused(
    familiar: Path, base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(familiar, tmp_path / "toy"))
    rewrite_json(lambda raw: raw.update(familiarity=None))(folder / "bayesian_config.json")
    (folder / FAMILIARITY_FILE).unlink()
    model = opened(folder, base_folder)
    assert model.predict("red 01").familiarity is None
    with pytest.raises(
        PromptError, match="has no familiarity, which comes with a decision head: leave min_familiarity out"
    ):
        model.predict("red 01", policy={"min_familiarity": 0.1})


def test_a_threshold_that_no_familiarity_can_fail_is_refused(familiar: Path, base_folder: Path) -> None:
    model = opened(familiar, base_folder)
    with pytest.raises(
        PromptError, match=r"got min_familiarity 0.01 with 60 reference rows, expected more than 0.0163944, "
    ) as refused:
        model.predict(FOREIGN[0], policy={"min_familiarity": 0.01})
    assert refused.value.param == "policy.min_familiarity"
    assert model.predict(FOREIGN[0], policy={"min_familiarity": 0.0}).answer is not None
    assert model.predict(FOREIGN[0], policy={"min_familiarity": 0.0164}).abstained


def idle_warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """Return the warnings of thresholds that no familiarity can fail."""
    messages = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    return [message for message in messages if "withholds no question as unfamiliar" in message]


@pytest.mark.parametrize(("limit", "is_idle"), [(0.0, False), (0.01, True), (1 / 61, True), (0.0164, False)])
def test_an_owners_threshold_that_no_familiarity_can_fail_is_warned_of_once(
    limit: float, is_idle: bool, familiar: Path, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(familiar, tmp_path / "toy"))
    rewrite_json(lambda raw: raw.update(policy={"min_familiarity": limit}))(folder / "bayesian_config.json")
    with caplog.at_level(logging.WARNING):
        answers = opened(folder, base_folder).predict(FOREIGN[:2])
    assert len(idle_warnings(caplog)) == is_idle
    said = f"Adapter toy withholds no question as unfamiliar: got min_familiarity {limit:g} with 60 reference rows, "
    assert all(warning.startswith(said) for warning in idle_warnings(caplog))
    assert [answer.abstained for answer in answers] == [limit == 0.0164] * 2


def test_an_owners_threshold_in_place_of_which_a_calibration_decides_is_not_warned_of(
    familiar: Path, base_folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = Path(shutil.copytree(familiar, tmp_path / "toy"))
    rewrite_json(lambda raw: raw.update(policy={"min_familiarity": 0.001}))(folder / "bayesian_config.json")
    rows = write_jsonl(tmp_path / "rest.jsonl", rows_of(200, 400))
    with caplog.at_level(logging.WARNING):
        model = opened(folder, base_folder)
        assert len(idle_warnings(caplog)) == 1
        model.calibrate(rows, target_risk=0.2, max_false_alarms=0.1)
        answer = opened(folder, base_folder).predict(FOREIGN[0])
    assert len(idle_warnings(caplog)) == 1
    assert answer.abstained


def test_an_owners_threshold_on_a_familiarity_that_the_adapter_lacks_is_refused_on_loading(
    familiar: Path, base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(familiar, tmp_path / "toy"))
    changes = {"familiarity": None, "policy": {"min_familiarity": 0.1}}
    rewrite_json(lambda raw: raw.update(changes))(folder / "bayesian_config.json")
    with pytest.raises((AdapterError, ConfigError), match="min_familiarity"):
        opened(folder, base_folder)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda folder: (folder / FAMILIARITY_FILE).unlink(), f"without {FAMILIARITY_FILE}"),
        (lambda folder: of_file(folder, lambda t: t.update(center=torch.zeros(3))), r"got center of shape \(3,\)"),
        (lambda folder: of_file(folder, lambda t: t["scale"][:1].zero_()), "familiarity whose scale is not positive"),
        (lambda folder: of_file(folder, lambda t: t["spread"][:1].neg_()), "whose spread is not positive"),
        (lambda folder: of_file(folder, lambda t: t["middle"].fill_(float("nan"))), "not finite"),
        (lambda folder: of_settings(folder, n_states=6144), "familiarity of 6144 states, expected .*, the head's"),
        (lambda folder: of_settings(folder, depths=[0]), "a familiarity without a head at its depths"),
        (lambda folder: of_settings(folder, kind="cosine"), "kind"),
    ],
)
def test_a_spoilt_familiarity_is_refused(
    spoil: Any, said: str, familiar: Path, base_folder: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(familiar, tmp_path / "toy"))
    spoil(folder)
    with pytest.raises((AdapterError, ConfigError), match=said):
        open_adapter(folder, base_model=str(base_folder), device="cpu", dtype="float32")
