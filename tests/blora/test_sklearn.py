"""The scikit-learn classifier: its contract with a stand-in for the training, and real trainings on a tiny model."""

import gc
import json
import os
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone, is_classifier
from sklearn.exceptions import NotFittedError, SkipTestWarning
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer
from sklearn.utils import check_array, get_tags
from sklearn.utils.estimator_checks import check_estimator, estimator_checks_generator

import blora.sklearn
from blora.errors import ConfigError
from blora.sklearn import BloraClassifier
from tests.scenarios import tiny_model, tiny_tokenizer
from tests.training.toys import toy_data

CARD = "README.md"  # the file in which the stand-in keeps what it has learned


class Centroids:
    """Stand-in for a trained adapter: the closest mean of the numbers in the texts."""

    def __init__(self, means: dict[str, list[float]]) -> None:
        self.means = means
        self.calibrated: list[dict[str, str]] = []
        self.adapter = SimpleNamespace(digest=json.dumps(means))

    def predict(self, texts: list[str], *, policy: dict[str, float] | None = None) -> list[Any]:
        return [
            self._one(
                np.array(text.split(), dtype=float), policy or ({"min_confidence": 0} if self.calibrated else None)
            )
            for text in texts
        ]

    def _one(self, vector: Any, policy: dict[str, float] | None) -> Any:
        scores = np.array([-np.square(vector - mean).sum() for mean in self.means.values()])
        probs = np.exp(scores - scores.max())
        probs /= probs.sum()
        entries = [SimpleNamespace(choice=name, probability=p) for name, p in zip(self.means, probs, strict=True)]
        least = policy["min_confidence"] if policy is not None else 0
        answer = list(self.means)[probs.argmax()] if probs.max() >= least else None
        return SimpleNamespace(probabilities=entries, answer=answer, policy=policy)

    def calibrate(self, rows: list[dict[str, str]], **goal: Any) -> None:
        self.calibrated += rows


def train(rows: list[dict[str, str]], *, output: Path, choices: list[str], **settings: Any) -> Centroids:
    of = {
        name: [np.array(row["prompt"].split(), dtype=float) for row in rows if row["label"] == name] for name in choices
    }
    means = {name: np.mean(vectors, axis=0).tolist() for name, vectors in of.items()}
    output.mkdir(exist_ok=True)
    (output / CARD).write_text(json.dumps(means))
    return Centroids(means)


def load(path: str, **where: Any) -> Centroids:
    return Centroids(json.loads((Path(path) / CARD).read_text()))


@pytest.fixture
def _stand_in(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blora.sklearn, "train", train)
    monkeypatch.setattr(blora.sklearn, "load", load)
    monkeypatch.setattr(blora.sklearn, "adapter_digest", lambda folder: (folder / CARD).read_text())


class OfNumbers(BloraClassifier):
    """The classifier behind a translation of rows of numbers into texts, so that every check can be made of it."""

    def fit(self, X: Any, y: Any = None) -> "OfNumbers":
        return super().fit(written(X), y)

    def predictions(self, X: Any) -> Any:
        return super().predictions(written(X))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array, tags.input_tags.one_d_array, tags.input_tags.string = True, False, False
        return tags


def written(X: Any) -> list[str]:
    return [" ".join(f"{value:.9g}" for value in row) for row in check_array(X)]


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(
    ("estimator", "check"),
    [pytest.param(*pair, id=pair[1].func.__name__) for pair in estimator_checks_generator(OfNumbers())],
)
def test_scikit_learns_checks_pass_where_numbers_are_written_as_texts(
    estimator: Any, check: Callable[[Any], None]
) -> None:
    check(estimator)


def test_scikit_learn_knows_that_it_takes_texts() -> None:
    assert is_classifier(BloraClassifier())
    tags = get_tags(BloraClassifier())
    assert (tags.input_tags.string, tags.input_tags.two_d_array) == (True, False)
    with pytest.warns(SkipTestWarning, match="Can't test estimator BloraClassifier"):
        check_estimator(BloraClassifier())


TEXTS = [f"{k} {k % 2}" for k in range(12)]
LABELS = ["even", "odd"] * 6


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize("form", [list, tuple, np.array, pd.Series, lambda texts: np.array(texts, dtype=object)])
def test_every_column_of_texts_will_do(form: Callable[[list[str]], Any]) -> None:
    classifier = BloraClassifier().fit(form(TEXTS), form(LABELS))
    assert classifier.classes_.tolist() == ["even", "odd"]
    assert classifier.predict_proba(form(TEXTS[:3])).shape == (3, 2)


@pytest.mark.usefixtures("_stand_in")
def test_it_takes_part_in_pipelines_and_searches() -> None:
    pipeline = make_pipeline(FunctionTransformer(list), BloraClassifier())
    assert cross_val_score(pipeline, TEXTS, LABELS, cv=3).shape == (3,)
    search = GridSearchCV(BloraClassifier(), {"template": ["{prompt}", "Ticket: {prompt}"]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_["template"] == "{prompt}"
    assert clone(search.best_estimator_).get_params()["template"] == "{prompt}"


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(
    ("X", "y", "message"),
    [
        ("one text", LABELS, "got X of type str, expected a list"),
        (5, LABELS, "got X of type int"),
        (np.zeros((12, 2)), LABELS, "got X of 2 dimensions"),
        ([], [], "got X without texts"),
        ([*TEXTS[:-1], None], LABELS, "got a NoneType in X, expected texts"),
        (TEXTS, LABELS[:-1], "inconsistent numbers of samples"),
        (TEXTS, None, "requires y to be passed"),
        (TEXTS, np.linspace(0, 1, 12), "Unknown label type"),
        (TEXTS, ["odd"] * 12, "got labels of 1 class"),
        (TEXTS, [*LABELS[:-2], float("nan"), None], "got no label at the positions 10, 11 of y, expected one"),
        (TEXTS, np.array([*LABELS[:-1], None], dtype=object), "got no label at the positions 11 of y"),
        (TEXTS, pd.Series([pd.NA, *LABELS[1:]], dtype="string"), "got no label at the positions 0 of y"),
        (TEXTS, [0, 1, *[np.nan] * 10], "the positions 2, 3, 4, 5, 6, 7, 8, 9, 10, 11 of y"),
        (TEXTS, [0, *[np.nan] * 11], "the positions 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 and 1 more of y"),
    ],
)
def test_what_is_no_text_or_label_is_refused(X: Any, y: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BloraClassifier().fit(X, y)


@pytest.mark.usefixtures("_stand_in")
def test_the_language_model_reads_names_of_the_classes() -> None:
    classifier = BloraClassifier(class_names=["even", "odd"]).fit(TEXTS, [0, 1] * 6)
    assert list(classifier.model_.means) == ["even", "odd"]
    assert classifier.predict(TEXTS[:2]).dtype == np.int64
    assert classifier.calibrate(["1 1"], [1]).model_.calibrated == [{"prompt": "1 1", "label": "odd"}]
    with pytest.raises(ValueError, match="got labels '1', expected those of fit: 0, 1"):
        classifier.calibrate(["1 1"], ["1"])
    with pytest.raises(ValueError, match="got labels 7, expected those of fit: 0, 1"):
        classifier.calibrate(["1 1"], [7])
    for names in (["same", "same"], ["even"]):
        with pytest.raises(ValueError, match="expected 2 distinct ones"):
            BloraClassifier(class_names=names).fit(TEXTS, LABELS)


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(("abstain_label", "dtype"), [(None, object), (-1, np.int64), ("unsure", object)])
def test_what_the_policy_withholds_gets_the_label_of_abstention(abstain_label: Any, dtype: Any) -> None:
    classifier = BloraClassifier(policy={"min_confidence": 1.1}, abstain_label=abstain_label).fit(TEXTS, [0, 1] * 6)
    found = classifier.predict_or_abstain(TEXTS)
    assert found.dtype == dtype
    assert found.tolist() == [abstain_label] * 12
    assert set(classifier.predict(TEXTS)) <= {0, 1}
    classifier.set_params(policy=None)
    with pytest.raises(ValueError, match="got neither a calibration nor a policy"):
        classifier.predict_or_abstain(TEXTS)
    assert set(classifier.calibrate(["1 1"], [1]).predict_or_abstain(TEXTS)) == {0, 1}


@pytest.mark.usefixtures("_stand_in")
@pytest.mark.parametrize(("abstain_label", "labels"), [(-1, [-1, 1]), (True, [0, 1]), ("odd", ["even", "odd"])])
def test_the_label_of_abstention_is_none_of_the_classes(abstain_label: Any, labels: list[Any]) -> None:
    classifier = BloraClassifier(abstain_label=abstain_label).fit(TEXTS, labels * 6)
    with pytest.raises(ValueError, match="which is one of the classes"):
        classifier.predict_or_abstain(TEXTS)


@pytest.mark.usefixtures("_stand_in")
def test_names_of_the_classes_stay_those_of_the_training() -> None:
    policy = {"min_confidence": 0.1}
    classifier = BloraClassifier(class_names=["even", "odd"], policy=policy).fit(TEXTS, [0, 1] * 6)
    before = [one(TEXTS).tolist() for one in (classifier.predict, classifier.predict_or_abstain)]
    classifier.set_params(class_names=["odd", "even"])
    assert [one(TEXTS).tolist() for one in (classifier.predict, classifier.predict_or_abstain)] == before
    classifier.set_params(policy=None)
    assert classifier.calibrate(["1 1"], [1]).model_.calibrated == [{"prompt": "1 1", "label": "odd"}]


@pytest.mark.usefixtures("_stand_in")
def test_a_policy_of_its_own_and_a_proof_exclude_each_other() -> None:
    classifier = BloraClassifier(policy={"min_confidence": 0.1}).fit(TEXTS, LABELS)
    with pytest.raises(ValueError, match="would decide in place of the proved threshold"):
        classifier.calibrate(TEXTS, LABELS)
    assert classifier.set_params(policy=None).calibrate(TEXTS[:1], LABELS[:1]).model_.calibrated


@pytest.mark.usefixtures("_stand_in")
def test_its_temporary_folder_goes_with_it_and_another_stays(tmp_path: Path) -> None:
    classifier = BloraClassifier().fit(TEXTS, LABELS)
    folder = Path(classifier.adapter_path_)
    assert folder.is_dir()
    del classifier
    gc.collect()
    assert not folder.parent.exists()
    BloraClassifier(output=tmp_path / "mine").fit(TEXTS, LABELS)
    gc.collect()
    assert (tmp_path / "mine").is_dir()


# On a real, tiny model


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("base") / "tiny-llama"
    tiny_model().save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module")
def data() -> tuple[list[str], list[str]]:
    rows = toy_data(200)
    return [row["question"] for row in rows], [row["choices"][row["label"]] for row in rows]


@pytest.fixture(scope="module")
def fitted(base: str, data: tuple[list[str], list[str]]) -> BloraClassifier:
    classifier = BloraClassifier(base_model=base, device="cpu", dtype="float32", template="Q: {prompt}", random_state=3)
    return classifier.fit(data[0][:80], data[1][:80])


def test_a_trained_classifier_has_learned_its_task(fitted: BloraClassifier, data: tuple[list[str], list[str]]) -> None:
    texts, labels = data[0][80:], data[1][80:]
    assert fitted.classes_.tolist() == ["cold", "warm"]
    assert fitted.score(texts, labels) > 0.9
    assert np.allclose(fitted.predict_proba(texts).sum(axis=1), 1, atol=1e-6)
    assert fitted.model_.adapter.config.prompt.template == "Q: {prompt}"
    assert fitted.model_.adapter.config.sampling.seed == fitted.model_.adapter.config.training["settings"]["seed"]
    assert {one.answer for one in fitted.predictions(texts)} == {"cold", "warm"}


def test_white_space_at_the_ends_of_labels_does_not_count(base: str, data: tuple[list[str], list[str]]) -> None:
    labels = [f" {label}\n" for label in data[1][:80]]
    classifier = BloraClassifier(base_model=base, device="cpu", dtype="float32").fit(data[0][:80], labels)
    assert set(classifier.predict(data[0][:80])) <= set(labels)
    with pytest.raises(ValueError, match="calibrate with texts that fit has not seen, or set policy"):
        classifier.predict_or_abstain(data[0][:80])
    classifier.set_params(policy={"min_confidence": 0.1})
    assert set(classifier.predict_or_abstain(data[0][:80])) <= set(labels)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_the_end_of_a_forked_process_leaves_the_adapters_folder(fitted: BloraClassifier) -> None:
    copy = pickle.loads(pickle.dumps(fitted))
    folder = Path(copy.adapter_path_)
    code = "import os, pickle, sys; copy = pickle.load(sys.stdin.buffer); child = os.fork(); child and os.wait(); "
    code += "child or sys.exit(0); print(os.path.isdir(copy.adapter_path_))"
    done = subprocess.run([sys.executable, "-c", code], input=pickle.dumps(fitted), capture_output=True, timeout=120)
    assert done.stdout.decode().strip() == "True", done.stderr.decode()
    del copy
    gc.collect()
    assert not folder.exists()


def test_a_copy_by_pickle_answers_the_same(fitted: BloraClassifier, data: tuple[list[str], list[str]]) -> None:
    before = fitted.predict_proba(data[0][:5])
    copy = pickle.loads(pickle.dumps(fitted))
    assert copy.adapter_path_ != fitted.adapter_path_
    assert np.allclose(copy.predict_proba(data[0][:5]), before, atol=1e-5)
    with pytest.raises(NotFittedError):
        clone(fitted).predict(data[0][:5])


def test_a_folder_that_another_fit_has_written_is_not_copied(
    base: str, data: tuple[list[str], list[str]], tmp_path: Path
) -> None:
    first = BloraClassifier(base_model=base, device="cpu", dtype="float32", output=tmp_path / "mine")
    first.fit(data[0][:40], data[1][:40]).predict(data[0][:1])
    clone(first).fit(data[0][:30], data[1][:30])
    with pytest.raises(ValueError, match="mine, which another fit has written since, expected this fit's"):
        pickle.dumps(first)


def test_a_calibration_proves_the_threshold(fitted: BloraClassifier, data: tuple[list[str], list[str]]) -> None:
    with pytest.raises(ConfigError, match="played no part in making it"):
        fitted.calibrate(data[0][:80], data[1][:80], target_risk=0.2)
    copy = pickle.loads(pickle.dumps(fitted)).calibrate(data[0][80:], data[1][80:], target_risk=0.2)
    assert copy.model_.calibration.target_risk == 0.2
    assert set(copy.predict_or_abstain(data[0][80:])) <= {"cold", "warm", None}
    again = pickle.loads(pickle.dumps(copy))
    again.predict(data[0][:1])
    assert again.model_.calibration.target_risk == 0.2
