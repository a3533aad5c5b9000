"""A model in process against the server on the same adapter: the same answers, and what else a model does."""

import json
import shutil
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import blora
from benchmarks.server_process import ADAPTER
from blora.adapter import load_adapter, save_adapter
from blora.adapter.calibration_file import CALIBRATION_FILE, for_serving, read_calibrations
from blora.base_model import BaseModel, load_base_model
from blora.client import AbstainBelow, Prediction
from blora.decision.calibration import Binding
from blora.errors import ConfigError, DataError, PromptError
from blora.front_door.model import Model
from blora.server.batch.offline import answering, patient
from blora.server.engines.torch_engine import TorchEngine
from blora.training.commands import calibrate, evaluate
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.server.engines.asking import CHOICES, write_adapter

# The tickets of the README, and others.
TICKETS = (
    "I need a full dump of our workspace in JSON for the archive.",
    "Does a full backup of our workspace cost extra?",
    "Jak długo gotować ziemniaki na sałatkę?",
    "Do you accept cheques?",
    "The search doesn't look inside attached PDFs.",
)
OWN = ("id", "created", "timing")  # of each answer its own


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny base model and an adapter of it."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_model().save_pretrained(folder / "base")
    tiny_tokenizer().save_pretrained(folder / "base")
    write_adapter(folder / "plain", folder / "base", seed=1, policy={"min_confidence": 0.4})
    return folder


def loaded(tiny: Path) -> Model:
    return blora.load(tiny / "plain", base_model=str(tiny / "base"), device="cpu", dtype="float32")


def shown(prediction: Prediction) -> dict[str, Any]:
    return {name: value for name, value in prediction.model_dump(exclude_unset=True).items() if name not in OWN}


def assert_alike(found: object, expected: object, tolerance: float, where: str = "answer") -> None:
    """Numbers within a tolerance, and everything else, the fields included, the same."""
    if isinstance(expected, float):
        assert found == pytest.approx(expected, abs=tolerance), where
    elif isinstance(expected, dict):
        assert isinstance(found, dict), where
        assert found.keys() == expected.keys(), where
        for name in expected:
            assert_alike(found[name], expected[name], tolerance, f"{where}.{name}")
    elif isinstance(expected, list):
        assert isinstance(found, list), where
        assert len(found) == len(expected), where
        for number, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_alike(one, other, tolerance, f"{where}[{number}]")
    else:
        assert found == expected, where


async def served(adapter: Path, base_model: str, asked: list[dict[str, Any]], dtype: str) -> AsyncIterator[Any]:
    """What the server's own predictor answers to requests."""
    settings = patient(adapters=(f"{adapter.name}={adapter}",), base_model=base_model, device="cpu", dtype=dtype)
    async with answering(settings, TorchEngine(settings)) as answer:
        for fields in asked:
            yield await answer(fields)


# The same answers


@pytest.mark.model
async def test_the_demo_answers_as_its_server_does() -> None:
    asked = [{"prompt": ticket} for ticket in TICKETS]
    model = blora.load(ADAPTER, device="cpu", dtype="float32")
    found = [model.predict(ticket) for ticket in TICKETS]  # each alone, as the server is asked here
    expected = [told["prediction"] async for told in served(ADAPTER, "embedded", asked, "float32")]
    assert [p.answer for p in model.predict(list(TICKETS))] == [told["answer"] for told in expected]
    assert {p.abstained for p in found} == {True, False}
    for prediction, told in zip(found, expected, strict=True):
        assert_alike(shown(prediction), {k: v for k, v in told.items() if k not in OWN}, 1e-5)


@pytest.mark.parametrize("stop_error", [None, 0.3])
async def test_every_field_is_the_servers(tiny: Path, tmp_path: Path, stop_error: float | None) -> None:
    base = load_base_model(str(tiny / "base"), device="cpu", dtype="float32")
    plain = load_adapter(tiny / "plain", base)
    prompt = replace(plain.config.prompt, choices=None)
    sampling = replace(plain.config.sampling, n_samples=16, stop_error=stop_error)
    config = replace(plain.config, prompt=prompt, sampling=sampling)
    save_adapter(tmp_path / "free", plain.posterior, config, base)
    asked: list[dict[str, Any]] = [
        {"prompt": "why", "choices": ["yes", "no"]},
        {"prompt": "a longer question", "choices": ["yes", "yes and no", "no"]},  # of which one can never win
        {"prompt": "why", "choices": ["b", "c"], "policy": {"min_confidence": 0.9}},
        {"messages": [{"role": "user", "content": "hi"}], "choices": ["b", "c", "d", "e"]},
    ]
    model = blora.load(tmp_path / "free", base_model=str(tiny / "base"), device="cpu", dtype="float32")
    expected = [told["prediction"] async for told in served(tmp_path / "free", str(tiny / "base"), asked, "float32")]
    together = model.predict([fields for fields in asked if "policy" not in fields])
    under_policy = model.predict(asked[2], policy=asked[2]["policy"])
    found = [*together[:2], under_policy, together[2]]
    assert (min(p.n_samples for p in found) < 16) == (stop_error is not None)
    for prediction, told in zip(found, expected, strict=True):
        assert_alike(shown(prediction), {k: v for k, v in told.items() if k not in OWN}, 1e-5)


def test_one_question_has_one_answer_and_several_a_list_in_order(tiny: Path) -> None:
    model = loaded(tiny)
    questions = ["why", "a much longer question than the other one", "q"]
    alone = [model.predict(question) for question in questions]
    together = model.predict(questions)
    assert isinstance(alone[0], Prediction)
    for one, other in zip(alone, together, strict=True):
        assert_alike(shown(one), shown(other), 1e-5)
    assert model.predict([]) == []
    assert [p.top_choice for p in model.predict(iter(questions))] == [p.top_choice for p in alone]
    # Rows of a data set are questions too; their other columns do not count.
    [row] = model.predict([{"question": "why", "label": "billing", "id": 7}])
    assert_alike(shown(row), shown(alone[0]), 1e-5)


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_every_row_of_a_frame_is_a_question(tiny: Path, library: str) -> None:
    model, rows = loaded(tiny), [{"prompt": text, "choices": ["up", "down"]} for text in ("why", "how", "q")]
    found = model.predict(pytest.importorskip(library).DataFrame(rows))
    for one, other in zip(found, model.predict(rows), strict=True):
        assert_alike(shown(one), shown(other), 1e-5)


def test_a_row_of_a_frame_is_one_question(tiny: Path) -> None:
    pandas = pytest.importorskip("pandas")
    model = loaded(tiny)
    rows = [{"id": 7, "prompt": text, "choices": choices} for text, choices in (("why", ["up", "down"]), ("how", None))]
    frame, expected = pandas.DataFrame(rows), model.predict(rows)
    for row, other in zip(frame.iloc, expected, strict=True):
        assert_alike(shown(model.predict(row)), shown(other), 1e-5)
    for one, other in zip(model.predict([row for _, row in frame.iterrows()]), expected, strict=True):
        assert_alike(shown(one), shown(other), 1e-5)
    of_a_column = model.predict(frame["prompt"])
    assert len(of_a_column) == 2
    without = {"prompt": "how", "choices": pandas.NA}
    assert_alike(shown(model.predict(without)), shown(expected[1]), 1e-5)
    own = {"prompt": "why", "choices": np.array(["up", "down"])}
    assert_alike(shown(model.predict(own)), shown(expected[0]), 1e-5)


def test_choices_are_the_questions_own_the_calls_or_the_adapters(tiny: Path) -> None:
    model = loaded(tiny)
    own = {"prompt": "why", "choices": ["up", "down"]}
    found = model.predict([own, "why"], choices=["left", "right", "on"])
    assert [[c.choice for c in p.probabilities] for p in found] == [["up", "down"], ["left", "right", "on"]]
    assert [c.choice for c in model.predict("why").probabilities] == list(CHOICES)


def test_a_policy_of_the_call_decides_instead(tiny: Path) -> None:
    model = loaded(tiny)
    never = model.predict("why", policy={"min_confidence": 1.0})
    assert (never.answer, [reason.reason for reason in never.abstain_reasons]) == (None, ["low_confidence"])
    assert never.policy is not None
    assert never.policy.source == "request"
    assert model.predict("why", policy={"min_confidence": 0.0}).answer == never.top_choice
    # Policies of the client apply to what a model answers.
    assert AbstainBelow(1.0).apply(model.predict("why", policy={"min_confidence": 0.0})).abstained


REFUSED: dict[str, tuple[Any, dict[str, Any], str, str]] = {
    "empty": ("", {}, "prompt", "has neither prompt nor messages"),
    "no question": ({"text": "why"}, {}, "prompt", "rename text to question or prompt"),
    "one choice": ("why", {"choices": ["up"]}, "choices", "got a list of 1 item, expected at least 2"),
    "choices as a text": (
        "why",
        {"choices": "yes|no"},
        "choices",
        "got a string of 6 characters, expected a valid list",
    ),
    "the same choice twice": ("why", {"choices": ["up", " up"]}, "choices", "Two choices are the same"),
    "too long": ("x" * 1000, {}, "prompt", "tokens of prompt and longest choice, expected at most"),
    "no such threshold": ("why", {"policy": {"patience": 1.0}}, "policy.patience", "no field of this name"),
    "a target that is not proved": ("why", {"policy": {"target_risk": 0.1}}, "policy.target_risk", "not calibrated"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_question_that_cannot_be_asked_is_named_with_its_part(tiny: Path, name: str) -> None:
    question, more, param, message = REFUSED[name]
    model = loaded(tiny)
    with pytest.raises(PromptError, match=message) as caught:
        model.predict(question, **more)
    assert caught.value.param == param
    if not more:
        with pytest.raises(PromptError, match=message) as caught:
            model.predict(["why", question])
        assert caught.value.__notes__ == ["in questions[1]"]
        first, second, third = model.predict(["why", question, "q"], errors="return")
        assert isinstance(first, Prediction)
        assert isinstance(third, Prediction)
        assert isinstance(second, PromptError)


def test_errors_are_raised_or_returned_and_nothing_else(tiny: Path) -> None:
    with pytest.raises(ConfigError, match="got errors 'ignore', expected raise or return"):
        loaded(tiny).predict(["why", ""], errors="ignore")  # type: ignore[call-overload]


# Evaluation, calibration, export


@pytest.fixture
def adapter(tiny: Path, tmp_path: Path) -> Path:
    """A copy of an adapter to calibrate."""
    return Path(shutil.copytree(tiny / "plain", tmp_path / "plain"))


def labelled(model: Model, n_rows: int, start: int = 0) -> list[dict[str, Any]]:
    """Rows whose labels are the model's own answers."""
    prompts = [f"question {n} of many" for n in range(start, start + n_rows)]
    answers = model.predict(prompts, policy={"min_confidence": 0.0})
    return [{"prompt": prompt, "label": p.answer} for prompt, p in zip(prompts, answers, strict=True)]


def test_an_evaluation_is_that_of_the_command(tiny: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = loaded(tiny)
    rows = [row | {"label": CHOICES[n % 3]} for n, row in enumerate(labelled(model, 12))]
    found = model.evaluate(rows)
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    arguments = [str(tiny / "plain"), "--data", str(file), "--base-model", str(tiny / "base"), "--device", "cpu"]
    assert evaluate.main([*arguments, "--dtype", "float32", "--json", str(tmp_path / "r.json")]) == 0
    told = json.loads((tmp_path / "r.json").read_text())
    assert (told["n_samples"], told["n_examples"]) == (found.n_samples, 12)
    for name, value in found.metrics.to_dict().items():
        assert told[name] == pytest.approx(value, abs=1e-5)
    assert "4 draws: accuracy" in capsys.readouterr().out
    assert model.evaluate(file, limit=5).metrics.to_dict() == pytest.approx(model.evaluate(rows[:5]).metrics.to_dict())


def test_a_calibration_is_that_of_the_command_and_decides_from_then_on(
    adapter: Path, tiny: Path, tmp_path: Path
) -> None:
    model = blora.load(adapter, base_model=str(tiny / "base"), device="cpu", dtype="float32")
    assert model.calibration is None
    rows = labelled(model, 60)
    goal = {"target_risk": 0.2, "delta": 0.1, "coverage": 0.8, "seed": 3, "score": "confidence"}
    proved = model.calibrate(rows, **goal)
    loaded_again = load_adapter(adapter, model.base)
    binding = Binding.of(loaded_again.config, adapter_digest=loaded_again.digest, dtype="float32")
    assert for_serving(adapter, binding) == proved == model.calibration
    # The command proves the same of the same rows.
    (adapter / CALIBRATION_FILE).unlink()
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in goal.items()]
    common = ["--base-model", str(tiny / "base"), "--device", "cpu", "--dtype", "float32"]
    assert calibrate.main([str(adapter), "--data", str(file), *common, *flags]) == 0
    [by_command] = read_calibrations(adapter)
    assert by_command.levels == proved.levels
    assert by_command.rows.digest == proved.rows.digest
    # It decides: answers show its target, have prediction sets, and are for its own choices alone.
    answer = model.predict("why")
    assert answer.policy is not None
    assert answer.policy.target_risk == 0.2
    assert answer.prediction_set
    assert model.predict("why", policy={"target_risk": 0.2}).policy is not None
    with pytest.raises(PromptError, match="was calibrated with its fixed ones"):
        model.predict("why", choices=["up", "down"])
    assert "P(wrong | answered) <= 0.2 by min_confidence" in repr(model)


def test_rows_that_prove_nothing_are_refused(adapter: Path, tiny: Path) -> None:
    model = blora.load(adapter, base_model=str(tiny / "base"), device="cpu", dtype="float32")
    rows = labelled(model, 60)
    with pytest.raises(ConfigError, match="got 60 rows for target_risk 0.01"):
        model.calibrate(rows, target_risk=0.01)
    with pytest.raises(DataError, match=r"got the same question twice in rows.*rows\[0\] and rows\[60\]"):
        model.calibrate([*rows, rows[0]], target_risk=0.2)
    wrong = [row | {"label": next(c for c in CHOICES if c != row["label"])} for row in rows]
    with pytest.raises(ConfigError, match="which these 60 rows do not prove"):
        model.calibrate(wrong, target_risk=0.2)
    assert model.calibration is None


def test_draws_are_exported(tiny: Path, tmp_path: Path) -> None:
    model = loaded(tiny)
    assert [folder.name for folder in model.export(tmp_path / "draws", n_samples=2)] == ["draw-000", "draw-001"]
    assert len(model.export(str(tmp_path / "all"))) == 4


# As it is shown


def test_a_model_is_shown_in_a_line_and_in_a_table(tiny: Path) -> None:
    model = loaded(tiny)
    assert repr(model) == (
        "Model(plain: base in float32 on cpu; choices billing, technical, account; 4 draws; min_confidence 0.4)"
    )
    html = model._repr_html_()
    assert html.startswith("<table><tr><td>adapter</td><td>plain</td></tr>")
    assert "billing, technical, account" in html


def test_a_prediction_is_shown_in_a_line_and_in_a_table(tiny: Path) -> None:
    model = loaded(tiny)
    answered = model.predict("why", choices=["<b>", "c", "d", "e"], policy={"min_confidence": 0.0})
    ranked = sorted(answered.probabilities, key=lambda c: -c.probability)
    assert repr(answered) == str(answered)
    assert repr(answered).startswith(
        f"Prediction({answered.answer!r}; {ranked[0].choice} {ranked[0].probability:.2f}, "
    )
    assert repr(answered).endswith(", ...)")
    assert "&lt;b&gt;" in answered._repr_html_()
    assert "<b>b" not in answered._repr_html_().replace("<b>&lt;b&gt;", "")
    withheld = model.predict("why", policy={"min_confidence": 1.0})
    assert f"abstained: low_confidence ({withheld.confidence:.3f}, threshold 1.000)" in repr(withheld)
    assert "<b>abstained</b><br>low_confidence" in withheld._repr_html_()


@pytest.mark.model
def test_the_demo_finds_its_own_base_model(smollm2: BaseModel) -> None:
    model = blora.load(ADAPTER, dtype="float32", device="cpu", name="demo")
    assert model.base.ref == smollm2.ref
    assert model.predict(TICKETS[0]).adapter.name == "demo"
    assert "smollm2-135m-instruct in float32 on cpu" in repr(model)
