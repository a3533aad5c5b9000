"""A scikit-learn classifier of texts whose `predict_or_abstain` withholds what cannot be trusted.

    classifier = BloraClassifier(template="Support ticket: {prompt} Queue:").fit(texts, labels)
    classifier.calibrate(unseen_texts, unseen_labels, target_risk=0.05)
    classifier.predict_or_abstain(new_texts)

Needs `pip install '.[sklearn]'` in a checkout. Unlike the rest of blora it is not imported by `import blora`.
"""

from collections.abc import Mapping, Sequence
from numbers import Real
from os import getpid
from pathlib import Path
from shutil import rmtree
from tempfile import mkdtemp
from typing import Any, Self
from weakref import finalize

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from blora.adapter import OWN_FILES, adapter_digest
from blora.client.answers import Prediction
from blora.front_door.functions import load, train
from blora.front_door.model import Model

__all__ = ["BloraClassifier"]

REPORTED = 10  # positions of missing labels in a message


class BloraClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc]  # scikit-learn has no types
    """Classifier of texts by a Bayesian decision head, or LoRA, on a frozen language model.

    Labels may be texts or numbers, of two classes or more. X is a list, an array or a column of texts. `predict` and
    `predict_proba` answer every text, as scikit-learn's tools expect; `predict_or_abstain` withholds answers by the
    policy, and `predictions` returns all that the server would say.

    Args:
        class_names: texts for the classes in the order of `classes_`, which answers name and a pointer head reads; by
            default the labels as texts. White space at their ends does not count.
        base_model: see `blora.load`; the embedded model by default.
        device: see `blora.load`.
        dtype: see `blora.load`.
        template: text around each text, with {prompt} in it, once or twice; by default the text alone.
        policy: thresholds to abstain by, such as {"min_confidence": 0.8}, for an adapter without a calibration.
        abstain_label: label of a withheld answer in `predict_or_abstain`, none of the classes.
        output: folder to write the adapter to; by default a temporary one that is removed with the classifier.
        settings: further settings of `blora.train`, such as {"layers": "last:20"} or {"validation": rows}.
        random_state: seed of the training and the draws.

    Attributes:
        classes_: (C,) the labels in sorted order, the columns of `predict_proba`.
        class_names_: the texts of the classes that the adapter was trained with.
        model_: the trained adapter, a `blora.Model`.
        adapter_path_: folder of the trained adapter.
    """

    def __init__(
        self,
        *,
        class_names: Sequence[str] | None = None,
        base_model: str = "embedded",
        device: str = "auto",
        dtype: str = "auto",
        template: str | None = None,
        policy: Mapping[str, float] | None = None,
        abstain_label: Any = None,
        output: str | Path | None = None,
        settings: Mapping[str, Any] | None = None,
        random_state: Any = 0,
    ) -> None:
        self.class_names = class_names
        self.base_model = base_model
        self.device = device
        self.dtype = dtype
        self.template = template
        self.policy = policy
        self.abstain_label = abstain_label
        self.output = output
        self.settings = settings
        self.random_state = random_state

    def fit(self, X: Any, y: Any) -> Self:
        """Train an adapter on texts (N,) and their labels (N,); a tenth of the rows sets the recalibration.

        Raises:
            ValueError: if X is not texts, y is no class labels or has one class only, or the lengths differ.
            BloraError: if the settings are wrong or the rows are too few, see `blora.train`.
        """
        texts, labels = _texts(X), _labels(y)
        check_consistent_length(texts, labels)
        classes, places = np.unique(labels, return_inverse=True)
        if len(classes) < 2:
            raise ValueError(f"got labels of {len(classes)} class, expected two classes or more: add rows of others")
        names = self._names(classes)
        rows = [{"prompt": text, "label": names[place]} for text, place in zip(texts, places, strict=True)]
        seed = int(check_random_state(self.random_state).randint(2**31 - 1))
        folder = self._new_folder()
        settings: dict[str, Any] = {"seed": seed, "bank_seed": seed, "template": self.template or "{prompt}"}
        self.model_ = train(
            rows,
            output=folder,
            choices=names,
            base_model=self.base_model,
            device=self.device,
            dtype=self.dtype,
            **settings | dict(self.settings or {}),
        )
        self.classes_, self.class_names_, self.adapter_path_ = classes, names, str(folder)
        return self

    def predict(self, X: Any) -> Any:
        """Return the most probable label (N,) of each text, withheld ones included."""
        check_is_fitted(self)
        return self.classes_[self.predict_proba(X).argmax(axis=1)]

    def predict_proba(self, X: Any) -> Any:
        """Return the probabilities (N, C) of the classes, the mean over the posterior draws."""
        check_is_fitted(self)
        column = {name: place for place, name in enumerate(self.class_names_)}
        found = np.zeros((len(predictions := self.predictions(X)), len(column)))
        for row, prediction in enumerate(predictions):
            for entry in prediction.probabilities:
                found[row, column[entry.choice]] = entry.probability
        return found

    def predict_or_abstain(self, X: Any) -> Any:
        """Return the label (N,) of each text, or `abstain_label` where the policy withholds the answer.

        The array holds objects, unless `abstain_label` is of the labels' type.

        Raises:
            ValueError: if `abstain_label` is one of the classes, or there is neither a calibration nor a policy.
        """
        check_is_fitted(self)
        if self.abstain_label in self.classes_.tolist():
            raise ValueError(
                f"got abstain_label {self.abstain_label!r}, which is one of the classes, expected another label"
            )
        predictions = self.predictions(X)
        if any(prediction.policy is None for prediction in predictions):
            raise ValueError(
                "got neither a calibration nor a policy, expected one of them to withhold answers by: calibrate with "
                "texts that fit has not seen, or set policy; predict answers every text"
            )
        label = dict(zip(self.class_names_, self.classes_.tolist(), strict=True))
        found = [label.get(prediction.answer, self.abstain_label) for prediction in predictions]
        same = isinstance(self.abstain_label, type(self.classes_.tolist()[0]))
        return np.array(found, dtype=None if same else object)

    def predictions(self, X: Any) -> list[Prediction]:
        """Return the whole prediction of each text: probabilities with spread, uncertainty, reasons to abstain."""
        check_is_fitted(self)
        return self._model().predict(_texts(X), policy=self.policy)

    def calibrate(self, X: Any, y: Any, *, target_risk: float = 0.05, delta: float = 0.05, **goal: Any) -> Self:
        """Prove a threshold on texts that `fit` has not seen, by which `predict_or_abstain` withholds.

        Args:
            X: (N,) texts.
            y: (N,) their labels, of the classes of `fit`.
            target_risk: largest P(wrong | answered).
            delta: probability, over random samples of rows, that it is exceeded nevertheless.
            goal: further arguments of `blora.Model.calibrate`.

        Raises:
            ValueError: if a label is of no known class, or `policy` is set, which would decide in place of the proof.
            BloraError: if there are too few rows, they were seen, or they do not prove the target.
        """
        check_is_fitted(self)
        if self.policy is not None:
            raise ValueError(
                f"got policy {self.policy!r}, which would decide in place of the proved threshold: set policy=None"
            )
        texts, labels = _texts(X), _labels(y)
        check_consistent_length(texts, labels)
        name = dict(zip(self.classes_.tolist(), self.class_names_, strict=True))
        if unknown := sorted({repr(label) for label in labels.tolist() if label not in name}):
            raise ValueError(f"got labels {', '.join(unknown)}, expected those of fit: {', '.join(map(repr, name))}")
        rows = [{"prompt": text, "label": name[label]} for text, label in zip(texts, labels.tolist(), strict=True)]
        self._model().calibrate(rows, target_risk=target_risk, delta=delta, **goal)
        return self

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.two_d_array = False
        tags.input_tags.one_d_array = True
        tags.input_tags.string = True
        tags.no_validation = True  # texts have no number of features
        return tags

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters and the adapter's files; a copy loads the base model again when it is used."""
        state = dict(super().__getstate__())
        if "adapter_path_" in state:
            folder = Path(state["adapter_path_"])
            if "model_" in state and adapter_digest(folder) != state["model_"].adapter.digest:
                raise ValueError(
                    f"got adapter folder {folder}, which another fit has written since, expected this fit's: give each "
                    "classifier an output of its own, or none"
                )
            state["_files"] = {name: (folder / name).read_bytes() for name in OWN_FILES if (folder / name).exists()}
        return {name: value for name, value in state.items() if name not in ("model_", "adapter_path_")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        files = state.pop("_files", None)
        super().__setstate__(state)
        if files is not None:
            folder = self._temporary_folder()
            folder.mkdir()
            for name, content in files.items():
                (folder / name).write_bytes(content)
            self.adapter_path_ = str(folder)

    def _model(self) -> Model:
        if not hasattr(self, "model_"):
            self.model_ = load(self.adapter_path_, base_model=self.base_model, device=self.device, dtype=self.dtype)
        return self.model_

    def _new_folder(self) -> Path:
        return Path(self.output) if self.output is not None else self._temporary_folder()

    def _temporary_folder(self) -> Path:
        """Return a new folder's path, which is removed with the classifier."""
        outer = mkdtemp(prefix="blora-")
        finalize(self, _remove, outer, getpid())
        return Path(outer) / "adapter"

    def _names(self, classes: Any) -> list[str]:
        """Return the texts of the classes, which must be distinct."""
        names = [str(label).strip() for label in (classes if self.class_names is None else self.class_names)]
        if len(names) != len(classes) or len(set(names)) < len(names):
            raise ValueError(f"got class names {names}, expected {len(classes)} distinct ones, in the labels' order")
        return names


def _texts(X: Any) -> list[str]:
    """Return X as a list of texts.

    Raises:
        ValueError: if X is one text, has more than one dimension, is empty, or holds anything but texts.
    """
    if isinstance(X, str | bytes | Mapping) or not hasattr(X, "__len__"):
        raise ValueError(f"got X of type {type(X).__name__}, expected a list, an array or a column of texts")
    if getattr(X, "ndim", 1) != 1:
        raise ValueError(f"got X of {X.ndim} dimensions, expected one: a column of texts")
    texts = list(X)
    if not texts:
        raise ValueError("got X without texts, expected at least one")
    if wrong := [type(text).__name__ for text in texts if not isinstance(text, str)]:
        raise ValueError(f"got a {wrong[0]} in X, expected texts")
    return [str(text) for text in texts]


def _labels(y: Any) -> Any:
    """Return y as an array (N,).

    Raises:
        ValueError: if y is not labels of classes, or a label is missing.
    """
    if y is None:
        raise ValueError("got y = None, expected labels: this classifier requires y to be passed")
    given = np.asarray(y, dtype=object)  # as an array of texts, None and NaN would be texts too
    if given.ndim == 1 and (missing := [str(place) for place, label in enumerate(given) if _is_missing(label)]):
        more = f" and {len(missing) - REPORTED} more" if len(missing) > REPORTED else ""
        raise ValueError(
            f"got no label at the positions {', '.join(missing[:REPORTED])}{more} of y, expected one for each text: "
            "leave out the texts without a label"
        )
    check_classification_targets(y)
    labels = np.asarray(y)
    if labels.ndim != 1:
        raise ValueError(f"got y of {labels.ndim} dimensions, expected one: a label for each text")
    return labels


def _is_missing(label: object) -> bool:
    """Return whether a label is None, NaN, or the NA of pandas, which need not be installed."""
    return label is None or (isinstance(label, Real) and label != label) or type(label).__name__ == "NAType"


def _remove(folder: str, owner: int) -> None:
    """Remove a folder, but not at the end of a process that was forked from its owner."""
    if getpid() == owner:
        rmtree(folder, ignore_errors=True)
