"""The methods of `benchmarks.peers` learn what texts and choices say; every one is held to the same figures."""

import json
import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.peers import decision_model, training_free
from benchmarks.peers.__main__ import methods
from benchmarks.peers.contrast import contrast
from benchmarks.peers.cumulative import Cumulative
from benchmarks.peers.figures import N_DIVISIONS, Scored, answered_at, averaged, figures
from benchmarks.peers.posteriors import mean_field
from benchmarks.peers.reading import kept_in, read_set
from benchmarks.peers.regressions import Parts, on_states, on_words
from benchmarks.peers.results import measure
from benchmarks.peers.sets import DATA, SETS, TaskSet, load_set
from benchmarks.peers.table import peers, peers_of_questions
from benchmarks.server_process import TRIAGE
from blora.base_model import load_base_model
from blora.config import HeadConfig
from blora.decision.temperature import Recalibration
from blora.posterior.decision_head import DecisionHead, Features
from blora.posterior.noise import generator_of
from blora.training.config import NEW_PROMPT
from blora.training.rows.examples import Example
from tests.heads import texts_with

COLOURS = ("red", "green", "blue")
FOREIGN = ("a sum of money", "no rain today", "who called", "seven")


def labels(n: int) -> Tensor:
    return torch.arange(n) % len(COLOURS)


def texts(n: int) -> list[str]:
    return [f"the {COLOURS[k % len(COLOURS)]} thing number {k}" for k in range(n)]


def test_a_regression_on_words_learns_them() -> None:
    found = on_words(
        Parts(
            {"train": texts(60), "validation": texts(30), "test": texts(21), "foreign": FOREIGN}, labels(60), labels(30)
        )
    )
    assert found.test.shape == (1, 21, 3)
    assert found.foreign is not None
    assert found.foreign.shape == (1, 4, 3)
    assert bool((found.test[0].argmax(-1) == labels(21)).all())


@pytest.mark.parametrize("method", [on_states, contrast])
def test_a_regression_on_states_learns_them_and_does_without_foreign_rows(method: Callable[[Parts], Scored]) -> None:
    generator = torch.Generator().manual_seed(0)
    parts = {
        name: (torch.eye(3)[labels(n)] + torch.randn(n, 3, generator=generator) / 20).numpy()
        for name, n in (("train", 60), ("validation", 30), ("test", 21), ("proof", 9))
    }
    found = method(Parts(parts, labels(60), labels(30)))
    assert found.proof is not None
    assert found.proof.shape == (1, 9, 3)
    assert found.foreign is None
    assert bool((found.test[0].argmax(-1) == labels(21)).all())


def test_a_cumulative_link_finds_the_weights_and_the_thresholds_of_its_own_model() -> None:
    config = HeadConfig(depths=(1,), n_states=2, n_directions=2, n_grams=1)
    grams = torch.zeros(1, dtype=torch.int32)
    head = {"center": torch.zeros(2), "scale": torch.ones(2), "directions": torch.eye(2), "count_scale": torch.ones(1)}
    zero = {name: torch.zeros(2, 4) for name in ("weight", "deviation")} | {"basis": torch.eye(4)}
    blank = DecisionHead(config, **head, **zero, count_weight=torch.zeros(1, 4), bias=torch.zeros(4), grams=grams)
    generator = generator_of(0)
    states, uniform = torch.randn(4000, 2, generator=generator), torch.rand(4000, generator=generator)
    noise = (uniform / (1 - uniform)).log()  # logistic
    level = torch.bucketize(states @ torch.tensor([1.5, 0.0]) + noise, torch.tensor([-1.0, 0.0, 2.0]))
    features = Features(states, torch.zeros(4000, 0), states, grams=texts_with(torch.zeros(4000, 1)))
    found = Cumulative(blank, 4).fit(features, level, 1.0, 1.0)
    torch.testing.assert_close(found.weight.detach(), torch.tensor([1.5, 0.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(found.lowest.detach(), torch.tensor([-1.0]), atol=0.1, rtol=0)
    torch.testing.assert_close(found.log_gaps.detach().exp(), torch.tensor([1.0, 2.0]), atol=0.15, rtol=0)
    torch.testing.assert_close(found.of(features).exp().sum(-1), torch.ones(1, 4000), atol=1e-5, rtol=0)


@pytest.mark.parametrize(("name", "levels"), [("urgent", ("false", "true")), ("mood", ("calm", "annoyed", "angry"))])
def test_the_other_questions_of_the_demo_are_sets(name: str, levels: tuple[str, ...]) -> None:
    task = load_set(name)
    assert task.prompt.choices == levels
    assert task.ordered == (name == "mood")
    first = json.loads((TRIAGE / "moods" / "train.jsonl").read_text().splitlines()[0])
    assert levels[task.train[0].label] == str(first[name]).lower()
    assert tuple(map(len, task.parts().values())) == (540, 400, 500, 550)


def test_a_mean_field_is_wide_where_rows_say_nothing_and_narrow_where_they_do() -> None:
    n, precision = 3000, 4.0
    z = torch.randn(n, 2, generator=generator_of(0)) * torch.tensor([1.0, 0.0])  # nothing varies along the second one
    truth = torch.tensor([[0.5, -0.5], [0.0, 0.0]])
    right = torch.multinomial((z @ truth).softmax(-1), 1, generator=generator_of(1))[:, 0]
    mean, deviation = mean_field(z, torch.zeros(n, 2), right, torch.zeros(2, 2), precision)
    torch.testing.assert_close(mean, truth, atol=0.08, rtol=0)
    torch.testing.assert_close(deviation[1], torch.full((2,), precision**-0.5), atol=0.03, rtol=0)
    # The mean-field optimum: 1 / deviation^2 is the curvature along each weight, the sum of p (1 - p) z^2, plus the prior.
    probs = (z @ truth).softmax(-1)
    curvature = (probs * (1 - probs) * z[:, :1].square()).sum(0) + precision
    torch.testing.assert_close(deviation[0], curvature.rsqrt(), atol=0, rtol=0.1)


def test_a_sure_and_right_method_answers_everything_and_a_guess_nothing() -> None:
    confidence = torch.linspace(0.5, 1, 400)
    wrong = torch.zeros(400, dtype=torch.bool)
    assert answered_at(confidence, wrong, 0.05) == pytest.approx([1.0] * N_DIVISIONS, abs=0.05)
    assert answered_at(confidence, ~wrong, 0.05) == [0.0] * N_DIVISIONS


def test_rows_for_the_proof_leave_every_test_row_to_answer() -> None:
    confidence, wrong = torch.linspace(0.5, 1, 40), torch.zeros(40, dtype=torch.bool)
    sure = torch.tensor([0.9, 0.1]).double().expand(1, 400, 2)
    right, mistaken = torch.zeros(400, dtype=torch.long), torch.ones(400, dtype=torch.long)
    assert (
        answered_at(confidence, wrong, 0.05, (sure, right))
        == [(confidence >= 0.9).double().mean().item()] * N_DIVISIONS
    )
    assert answered_at(confidence, wrong, 0.05, (sure, mistaken)) == [0.0] * N_DIVISIONS


def test_rows_for_the_proof_have_metrics_of_their_own() -> None:
    probs = torch.tensor([[0.9, 0.1], [0.2, 0.8]]).double()[None]
    unseen, truth = torch.tensor([[0.7, 0.3]] * 400).double(), torch.arange(400) % 10 // 7
    found = figures(probs, torch.tensor([0, 1]), None, None, (unseen[None], truth))
    assert (found["accuracy"], found["proof_accuracy"]) == (1, pytest.approx(0.7))
    assert found["proof_nll"] == pytest.approx(-0.7 * math.log(0.7) - 0.3 * math.log(0.3))
    assert found["proof_ece"] == pytest.approx(0, abs=1e-6)
    assert found["proof_ece_floor"] == pytest.approx(math.sqrt(2 / math.pi * 0.7 * 0.3 / 400), rel=0.2)


def test_few_rows_prove_nothing() -> None:
    assert answered_at(torch.ones(40), torch.zeros(40, dtype=torch.bool), 0.05) == [0.0] * N_DIVISIONS


def test_recalibration_is_applied_to_every_draw_only_if_asked_for() -> None:
    log_probs = torch.tensor([[[0.9, 0.1]], [[0.6, 0.4]]]).log()
    scored = Scored("some", log_probs, None, Recalibration(2.0, lapse=0.1), 1.0)
    torch.testing.assert_close(scored.probabilities(recalibrated=False)[0], log_probs.double().exp())
    root = log_probs.double().exp().sqrt()
    expected = 0.9 * root / root.sum(-1, keepdim=True) + 0.05
    torch.testing.assert_close(scored.probabilities(recalibrated=True)[0], expected)


def test_only_draws_have_mutual_information() -> None:
    probs = torch.tensor([[[0.9, 0.1], [0.8, 0.2]] * 4, [[0.7, 0.3], [0.9, 0.1]] * 4]).double()
    foreign = torch.tensor([[[0.9, 0.1]], [[0.1, 0.9]]]).double()
    truth = torch.zeros(8, dtype=torch.long)
    drawn, alone = figures(probs, truth, foreign, None), figures(probs[:1], truth, foreign[:1], None)
    assert drawn["foreign_confidence"] == drawn["foreign_mutual_information"] == 1
    assert alone["foreign_mutual_information"] is None
    mean, spread = averaged([drawn, drawn])
    assert mean == drawn
    assert spread["nll"] == 0
    assert spread["accuracy_clear"] is None


@pytest.mark.data
@pytest.mark.skipif(not DATA.exists(), reason="needs the question-answering sets in ../shared/data")
@pytest.mark.parametrize("name", SETS)
def test_every_set_loads_with_no_training_row_among_the_others(name: str) -> None:
    task = load_set(name)
    ids = [{example.where for example in part} for part in task.parts().values()]
    assert sum(map(len, ids)) == len(set().union(*ids))
    assert (task.prompt.choices is None) == (name == "arc_easy")
    assert bool(task.foreign) == (name in ("demo", "clinc150", "arc_easy"))


def test_what_was_read_is_kept(tmp_path: Path) -> None:
    file = tmp_path / "states" / "toy.pt"
    for given in (None, file):
        assert kept_in(given, lambda: 5) == 5
    assert kept_in(file, pytest.fail) == 5  # type: ignore[arg-type]


@pytest.mark.model
@pytest.mark.parametrize("kind", ["linear", "pointer"])
def test_every_method_is_measured_and_shown(kind: str) -> None:
    task = replace(linear(), ordered=True) if kind == "linear" else pointer()
    base = load_base_model("embedded", dtype="float32")
    read = read_set(base, task)
    result = measure(task, methods(task, read))
    names = [row["method"] for row in result["rows"]][::2]
    first = "TF-IDF regression" if kind == "linear" else "base model's log-probabilities"
    ours = ["regression on frozen states", "head, posterior mean", "head, 64 draws"]
    others = ["head, isotropic Gaussian, 64 draws", "head, dropout, 64 draws"]
    if kind == "linear":
        ours[1:1] = ["contrast on frozen states", "cumulative link"]
        others += ["head, mean-field variational, 64 draws", "heads on 5 bootstraps"]
    assert names == [first, *ours, *others]
    alone = 2 * len(ours)  # without draws: the first one, and all of ours but the last
    assert [row["seeds"] for row in result["rows"]] == [None] * alone + [[0, 1, 2]] * (2 * len(names) - alone)
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": "tiny", "dtype": "float32"}
    shown = peers([result | about | {"set": "demo"}], [], [])
    assert all(f"| {name} |" in shown for name in names)


# An AnyJev that gives an option a probability by its length, so that a test can tell options apart.
ANYJEV = """
from types import SimpleNamespace as Made
import numpy
class Question:
    choice = staticmethod(lambda text, options: Made(kind="choice", text=text, options=options))
    noul = staticmethod(lambda text: Made(kind="noul", text=text, options=["Yes", "No"]))
    score = staticmethod(lambda text, levels: Made(kind="score", text=text, options=levels))
class Decider:
    def __init__(self, backend, shared_prefix): pass
    def decide_batch(self, states, question):
        lengths = numpy.array([len(option) for option in question.options], float)
        return [Made(probs=lengths / lengths.sum()) for state in states]
"""
# An any2jev that learns how often each option was right by its place, and knows no other.
ANY2JEV = """
import json
from pathlib import Path
import torch
def materialize(request):
    (question,) = request["questions"].values()
    options = {"noul": ["no", "yes"]}.get(question["type"], list(question.get("criteria", ())))
    label = question["label"]
    return options, label if isinstance(label, int) else options.index(label)
class DecisionModel:
    @classmethod
    def load(cls, folder, device):
        model = cls()
        model.counts = json.loads((Path(folder) / "counts.json").read_text())
        return model
    def encode(self, options, label):
        return options
    def probs(self, packs):
        counts = [torch.tensor([self.counts.get(str(k), 0) + 1.0 for k in range(len(pack))]) for pack in packs]
        return [[one / one.sum()] for one in counts]
"""
TRAIN = """#!{python}
import json, sys
from collections import Counter
from pathlib import Path
from any2jev import materialize
flags = dict(zip(sys.argv[2::2], sys.argv[3::2]))
counts = Counter(materialize(json.loads(line))[1] for line in open(flags["--data"]))
Path(flags["--out"]).mkdir()
(Path(flags["--out"]) / "counts.json").write_text(json.dumps(counts))
"""


def written(folder: Path, files: dict[str, str]) -> Path:
    """Write files by their paths and return their folder."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


@pytest.mark.model
def test_anyjev_is_asked_in_an_environment_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    backend = "def HFBackend(folder, device, dtype): pass"
    files = {"anyjev/__init__.py": ANYJEV, "anyjev/backends/hf.py": backend}
    monkeypatch.setenv("PYTHONPATH", str(written(tmp_path, files)))
    base, python = load_base_model("embedded", dtype="float32"), Path(sys.executable)
    found = training_free.anyjev(pointer(), base, python)
    assert found.foreign is not None
    assert (tuple(found.test.shape), tuple(found.foreign.shape), found.proof) == ((1, 9, 3), (1, 5, 3), None)
    torch.testing.assert_close(found.test[0, 0].exp(), torch.tensor([3 / 8, 5 / 8, 0]))
    torch.testing.assert_close(found.test[0, 1].exp(), torch.tensor([3 / 12, 5 / 12, 4 / 12]))
    nouls = replace(linear(), test=(Example("1", "prompt", "is it?", None, ("no", "yes"), 0),))
    of_nouls = training_free.anyjev(nouls, base, python).test[0, 0].exp()
    torch.testing.assert_close(of_nouls, torch.tensor([2 / 5, 3 / 5, 0])[: len(of_nouls)])
    asked = replace(linear(), name="mood")
    measured = measure(asked, [training_free.anyjev(asked, base, python)])
    assert [measured[f"n_{part}"] for part in ("validation", "test", "foreign")] == [12, 9, 4]
    assert [row["treatment"] for row in measured["rows"]] == ["as trained", "recalibrated"]
    assert measured["rows"][0]["accuracy"] == pytest.approx(3 / 9)  # the longest option, green, every time


def test_any2jev_is_trained_and_asked_in_an_environment_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {"any2jev/__init__.py": ANY2JEV, "any2jev/data.py": "from any2jev import materialize"}
    monkeypatch.setenv("PYTHONPATH", str(written(tmp_path, files)))
    python = f'#!/bin/sh\nexec {sys.executable} "$@"\n'
    files = {"any2jev": TRAIN.format(python=sys.executable), "python": python}
    program = written(tmp_path / "bin", files) / "any2jev"
    for name in files:
        program.with_name(name).chmod(0o755)
    for k, task in enumerate((pointer(), replace(linear(), name="mood"))):
        work = written(tmp_path / str(k), {"base/config.json": "{}"})
        found = decision_model.any2jev(task, program, work)
        counts = torch.tensor([sum(row.label == k for row in task.train) + 1.0 for k in range(3)])
        torch.testing.assert_close(found.test[0, 1].exp(), counts / counts.sum())
        assert found.foreign is not None
        assert found.test.shape[1] + found.foreign.shape[1] == len(task.test) + len(task.foreign)
        again = decision_model.any2jev(replace(task, train=task.train[:2]), program, work)
        torch.testing.assert_close(again.test, found.test)  # the trained model is used again
    yes = Example("1", "prompt", "is it?", None, ("no", "yes"), 1)
    assert decision_model.request_of(linear(), yes) == {
        "state": "",
        "questions": {"question": {"type": "noul", "instructions": "is it?", "label": 1}},
    }
    measured = measure(task, [found])
    about = {"machine": {"cores": 2, "processor": "some"}, "base_model": "tiny", "dtype": "float32"}
    about |= {"revision": "abc", "set": "mood", "command": "some command"}
    shown = peers_of_questions([measured | about | {"rows": []}], [], [measured | about])
    assert "| any2jev |" in shown
    trained = "any2jev 0.1 is trained once, by its defaults, on the same training rows, in 0 (mood) minutes"
    assert f"{trained} of processor time." in shown


def test_a_set_is_thinned_with_its_mask() -> None:
    rows = tuple(Example(str(k), "prompt", str(k), None, COLOURS, k % 3) for k in range(500))
    task = replace(linear(), test=rows, clear=torch.arange(500) % 7 == 0)
    thin = training_free.thinned(task)
    assert len(thin.test) == training_free.MOST_ROWS
    assert len(thin.validation) == 12
    assert thin.clear is not None
    assert thin.clear.tolist() == [int(row.prompt or "") % 7 == 0 for row in thin.test]


def linear() -> TaskSet:
    def examples(some: list[str]) -> tuple[Example, ...]:
        return tuple(Example(text, "prompt", text, None, COLOURS, k % 3) for k, text in enumerate(some))

    prompt = replace(NEW_PROMPT, choices=COLOURS, readout="linear")
    parts = [examples(texts(n)) for n in (24, 12, 9)]
    return TaskSet("toy", prompt, parts[0], parts[1], parts[2], examples(list(FOREIGN)), "toys", torch.arange(9) > 3)


def pointer() -> TaskSet:
    def examples(n: int) -> tuple[Example, ...]:
        return tuple(Example(str(k), "question", f"Which of {k}?", None, COLOURS[: 2 + k % 2], k % 2) for k in range(n))

    prompt = replace(NEW_PROMPT, readout="pointer")
    return TaskSet("toy", prompt, examples(16), examples(12), examples(9), examples(5), "toys")
