"""The criteria that Bayesian-LoRA is held to, and whether the numbers meet them."""

from dataclasses import dataclass
from statistics import fmean

from benchmarks.calibration.report.records import AS_TRAINED, TEMPERATURE
from benchmarks.calibration.report.study import BAYESIAN, OURS, MethodRuns, Study, shared, spread
from benchmarks.calibration.report.table import NONE, Table

__all__ = ["Verdict", "verdict_table", "verdicts"]

MAX_ECE = 0.04
MAX_ACCURACY_LOSS = 0.01
MAX_SHIFTED_ECE = 0.75  # of that of LoRA with temperature
RIVALLED = {"nll": "NLL", "brier": "Brier", "aurc": "AURC"}
ROUNDING = 1e-9  # a difference of two decimals that is exactly at its limit


@dataclass(frozen=True, slots=True)
class Verdict:
    """One criterion, held against the means over the seeds that both sides have.

    Attributes:
        criterion: in words.
        subject: the method and treatment that are judged.
        ours: their figure.
        limit: the figure to stay below or to reach, and whose figure that is.
        met: None where the runs that would tell are missing.
    """

    criterion: str
    subject: str
    ours: str = NONE
    limit: str = NONE
    met: bool | None = None


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Our mean and a baseline's, over the seeds that both have."""

    ours: float
    theirs: float
    baseline: str


@dataclass(frozen=True, slots=True)
class _Case:
    """One Bayesian-LoRA on one test set in one treatment."""

    study: Study
    entry: MethodRuns
    dataset: str
    treatment: str

    @property
    def subject(self) -> str:
        return f"{self.entry.label}, {self.treatment}"

    def against(self, baseline: MethodRuns | None, treatment: str, name: str) -> _Comparison | None:
        """Return both means of a metric, None where the two have no seed in common."""
        if baseline is None:
            return None
        theirs = baseline.values(self.dataset, treatment, name)
        pairs = shared(self.entry.values(self.dataset, self.treatment, name), theirs, baseline)
        if not pairs:
            return None
        means = [fmean(side) for side in zip(*pairs, strict=True)]
        return _Comparison(means[0], means[1], f"{baseline.label}, {treatment}")


def verdict_table(study: Study) -> Table:
    """Return the verdicts in a row each: met, missed, or cannot tell."""
    words = {True: "met", False: "missed", None: "cannot tell"}
    header = ("criterion", "of", "ours", "limit", "verdict")
    rows = [(v.criterion, v.subject, v.ours, v.limit, words[v.met]) for v in verdicts(study)]
    return Table(header, rows, n_words=len(header))


def verdicts(study: Study) -> list[Verdict]:
    """Return the verdicts on every Bayesian-LoRA of a study, in every treatment."""
    found = []
    for entry in study.named(BAYESIAN):
        for treatment in study.treatments:
            for case in (_Case(study, entry, dataset, treatment) for dataset in study.in_distribution):
                found.append(_calibrated(case))
                found += [_best(case, name, heading) for name, heading in RIVALLED.items()]
                found.append(_accurate(case))
            found += [_shifted(_Case(study, entry, dataset, treatment)) for dataset in study.shifted]
    return found


def _calibrated(case: _Case) -> Verdict:
    criterion = f"ECE of {case.dataset} at most {MAX_ECE}"
    ece = spread(case.entry.values(case.dataset, case.treatment, "ece").values())
    if ece is None:
        return Verdict(criterion, case.subject)
    return Verdict(criterion, case.subject, f"{ece.mean:.4f}", f"{MAX_ECE:.4f}", ece.mean <= MAX_ECE + ROUNDING)


def _best(case: _Case, name: str, heading: str) -> Verdict:
    """Compare with the single-model baseline, in any treatment, that leaves ours the least room."""
    criterion = f"{heading} of {case.dataset} at most that of every single-model baseline"
    rivals = [e for e in case.study.entries if e.method.single_model and e.method.name not in OURS]
    found = [case.against(rival, treatment, name) for rival in rivals for treatment in case.study.treatments]
    compared = [comparison for comparison in found if comparison is not None]
    if not compared:
        return Verdict(criterion, case.subject)
    hardest = max(compared, key=lambda comparison: comparison.ours - comparison.theirs)
    met: bool | None = hardest.ours <= hardest.theirs + ROUNDING
    unknown = case.against(case.study.lora, TEMPERATURE, name) is None
    if met and (unknown or any(case.against(rival, case.treatment, name) is None for rival in rivals)):
        met = None  # without LoRA with temperature, or a rival in our treatment, it is not every baseline
    return Verdict(criterion, case.subject, f"{hardest.ours:.4f}", f"{hardest.theirs:.4f} ({hardest.baseline})", met)


def _accurate(case: _Case) -> Verdict:
    criterion = f"accuracy of {case.dataset} within 1 point of LoRA's"
    lora = case.against(case.study.lora, AS_TRAINED, "accuracy")
    if lora is None:
        return Verdict(criterion, case.subject)
    floor = lora.theirs - MAX_ACCURACY_LOSS
    limit = f"{floor:.4f} ({lora.baseline}: {lora.theirs:.4f})"
    return Verdict(criterion, case.subject, f"{lora.ours:.4f}", limit, lora.ours >= floor - ROUNDING)


def _shifted(case: _Case) -> Verdict:
    criterion = f"ECE of {case.dataset}, shifted, at least 25 % below that of LoRA with temperature"
    lora = case.against(case.study.lora, TEMPERATURE, "ece")
    if lora is None:
        return Verdict(criterion, case.subject)
    limit = MAX_SHIFTED_ECE * lora.theirs
    shown = f"{limit:.4f} ({lora.baseline}: {lora.theirs:.4f})"
    return Verdict(criterion, case.subject, f"{lora.ours:.4f}", shown, lora.ours <= limit + ROUNDING)
