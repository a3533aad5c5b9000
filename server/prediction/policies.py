"""Selection of the policy for a request, and checks that the adapter's calibration covers the request.

The request's own policy comes first, then the adapter's calibrated level, then the owner's thresholds, then no policy.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch

from blora.client.answers import PolicyInForce
from blora.config import PromptConfig
from blora.decision.abstention import Policy
from blora.decision.calibration import FormName
from blora.decision.conformal import prediction_sets
from blora.decision.uncertainty import Prediction
from blora.questions.spelling import seen
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import idle_familiarity
from blora.server.engines.protocol import Job, Stop
from blora.server.errors import InvalidRequestError
from blora.server.prediction.choices import listed
from blora.server.schemas.requests import PredictRequest

__all__ = [
    "InForce",
    "Wording",
    "check_job",
    "default_policy",
    "policy_for",
    "prediction_set",
    "stop_of",
    "uncalibrated_because",
]

# The part of a typed question that may be worded differently from the question of the adapter that answers it.
Wording = Literal["instructions", "descriptions", "input"]
# Those that the adapter does not read, so that they change no answer.
_UNREAD = ("instructions", "descriptions")


@dataclass(frozen=True, slots=True)
class InForce:
    """The policy for a request, and the target risk that it was proved for, None if it was not proved."""

    policy: Policy
    target_risk: float | None = None

    def shown(self) -> PolicyInForce:
        """Return the policy as shown in answers, with only the fields that are set."""
        target = {} if self.target_risk is None else {"target_risk": self.target_risk}
        return PolicyInForce(source=self.policy.source, **self.policy.thresholds(), **target)


def default_policy(handle: AdapterHandle) -> InForce | None:
    """Return the policy for requests without their own; None if the adapter has neither calibration nor policy."""
    if handle.calibration is not None:
        level = handle.calibration.default_level
        return InForce(handle.calibration.policy(level), level.target_risk)
    return InForce(handle.policy) if handle.policy is not None else None


def stop_of(in_force: InForce | None, handle: AdapterHandle) -> Stop | None:
    """Return the condition under which a request's draws end early; None if all of them are made."""
    error = handle.config.sampling.stop_error
    return Stop(in_force.policy, error) if in_force is not None and error is not None else None


def policy_for(question: PredictRequest, handle: AdapterHandle, other_wording: Wording | None = None) -> InForce | None:
    """Return the policy for a request; None for no policy.

    The calibrated policy of an adapter whose question the request words differently, in instructions or descriptions
    that the adapter does not read, keeps its thresholds and loses its target risk.

    Args:
        question: the request.
        handle: the adapter.
        other_wording: what the request words differently from the adapter's own question; None for nothing.

    Raises:
        InvalidRequestError: if the request relies on a calibration that the adapter does not have, that lacks the
            requested target, or that does not cover the request's draws, scoring, choices, form or input; or if no
            question can fail the request's own limit of the familiarity.
    """
    asked = question.policy
    if asked is None:
        chosen = default_policy(handle)
    elif asked.target_risk is None:
        chosen = InForce(Policy(**asked.thresholds(), source="request"))
    else:
        chosen = _proved(handle, asked.target_risk)
    if chosen is not None and chosen.policy.min_familiarity is not None and handle.familiarity is None:
        raise InvalidRequestError(
            f"Adapter {handle.name!r} has no familiarity, which comes with a decision head: leave min_familiarity out.",
            code="invalid_value",
            param="policy.min_familiarity",
        )
    if chosen is not None:
        _check_familiarity(chosen.policy, handle)
    departure = _departure(question, handle, other_wording)
    if chosen is not None and chosen.target_risk is not None and departure is not None:
        if asked is None and departure.field in _UNREAD:
            return InForce(chosen.policy)
        raise InvalidRequestError(
            f"The request has {departure.asked}, but adapter {handle.name!r} was calibrated with "
            f"{departure.calibrated}, and the guarantee of its policy covers nothing else: {departure.remedy}, or send "
            "policy thresholds of your own.",
            code="not_calibrated",
            param=departure.field,
        )
    return chosen


def check_job(in_force: InForce | None, job: Job) -> None:
    """Raise an error if the policy limits a score that says nothing about the job's answer.

    The familiarity says nothing about an answer without the head, nor does a score that needs more draws that differ
    than the job has.

    Raises:
        InvalidRequestError: naming n_samples if the draws differ, and the threshold in any other case.
    """
    if in_force is not None and in_force.policy.min_familiarity and job.kind == "below head":  # 0 withholds nothing
        raise InvalidRequestError(
            "got scoring or choices for which the adapter's head does not answer under a policy with min_familiarity, "
            "which says nothing about such an answer: use those of the adapter, or send policy thresholds without it",
            param="policy.min_familiarity",
        )
    score = in_force.policy.short_of_draws(job.n_samples if job.draws_differ else 1) if in_force is not None else None
    if score is None:
        return
    if job.draws_differ:
        param, got, remedy = "n_samples", f"n_samples {job.n_samples}", "ask for more draws, or "
    else:
        param, got = f"policy.{score.threshold}", "draws that are all equal"
        has_head = job.handle.config.head is not None
        remedy = "use scoring and choices for which the adapter has a posterior, or " if has_head else ""
    raise InvalidRequestError(
        f"got {got} under a policy with {score.threshold}, expected at least {score.fewest_draws} different draws: "
        f"{remedy}send policy thresholds without it",
        param=param,
    )


def _check_familiarity(policy: Policy, handle: AdapterHandle) -> None:
    """Raise an error if no question can fail the request's own limit of the familiarity.

    Of such a limit of the adapter's policy, which no client can change, the log warns on loading.

    Raises:
        InvalidRequestError: naming the threshold.
    """
    fault = idle_familiarity(policy, handle) if policy.source == "request" else None
    if fault is not None:
        raise InvalidRequestError(fault, param="policy.min_familiarity")


def prediction_set(
    question: PredictRequest,
    handle: AdapterHandle,
    prediction: Prediction,
    choices: Sequence[str],
    *,
    guesses: bool,
    other_wording: Wording | None,
) -> list[str] | None:
    """Return the choices of the prediction set; None if the adapter's calibration does not cover the request.

    Args:
        question: the request.
        handle: the adapter.
        prediction: the answer.
        choices: all choices.
        guesses: whether the answer is mostly guesses; its set then holds all choices.
        other_wording: see `policy_for`.
    """
    if handle.calibration is None or _departure(question, handle, other_wording) is not None:
        return None
    if guesses:
        return [*choices]
    probs = torch.tensor([prediction.probabilities], dtype=torch.float64)
    [members] = prediction_sets(probs, handle.calibration.quantile)
    return [choice for choice, member in zip(choices, members.tolist(), strict=True) if member]


def uncalibrated_because(question: PredictRequest, handle: AdapterHandle, other_wording: Wording | None) -> str | None:
    """Return the reason why the adapter's calibration does not cover a request; None if it does."""
    if handle.not_calibrated:
        return f"The calibration of adapter {handle.name!r} does not hold for the way it is served."
    if handle.calibration is None:
        return f"Adapter {handle.name!r} has no calibration."
    if departure := _departure(question, handle, other_wording):
        return f"Adapter {handle.name!r} was calibrated with {departure.calibrated}; the request has {departure.asked}."
    return None


def _proved(handle: AdapterHandle, target_risk: float) -> InForce:
    calibration = handle.calibration
    level = calibration.level(target_risk) if calibration is not None else None
    if calibration is not None and level is not None:
        return InForce(calibration.policy(level, "request"), level.target_risk)
    if calibration is None:
        remedy = "It is not calibrated: send thresholds, or leave `policy` out."
    else:
        known = ", ".join(f"{proved.target_risk:g}" for proved in calibration.proved())
        remedy = f"It is proved for {known}: send one of these, or thresholds of your own."
    raise InvalidRequestError(
        f"target_risk {target_risk:g} is not proved for adapter {handle.name!r}. {remedy}",
        code="not_calibrated",
        param="policy.target_risk",
    )


def _same_choices(asked: Sequence[str], prompt: PromptConfig) -> bool:
    """Return whether choices are the adapter's fixed ones; their order counts where the model reads them as a list.

    Those of a linear head, whose texts no model reads, only have to look the same.
    """
    form = seen if prompt.readout == "linear" else str.strip
    found, own = ([form(choice) for choice in choices] for choices in (asked, prompt.choices or ()))
    return found == own if prompt.scoring == "label" else sorted(found) == sorted(own)


class _Departure(NamedTuple):
    """A difference of a request from the calibration: the field, and phrases for the error message."""

    field: str
    asked: str
    calibrated: str
    remedy: str


def _departure(question: PredictRequest, handle: AdapterHandle, other_wording: Wording | None) -> _Departure | None:
    """Return the first difference of a request from the adapter's calibration, or None."""
    if handle.calibration is None:
        return None
    prompt, sampling, rows = handle.config.prompt, handle.config.sampling, handle.calibration.rows
    usual = {
        "n_samples": sampling.n_samples,
        "seed": sampling.seed,
        "scoring": prompt.scoring,
    }
    for field, value in usual.items():
        asked = getattr(question, field)
        if asked not in (None, value):
            return _Departure(field, f"{field} {asked}", str(value), f"leave {field} out")
    if question.choices and prompt.choices and not _same_choices(question.choices, prompt):
        own = f"its fixed ones, {listed(list(map(repr, prompt.choices)))}"
        return _Departure("choices", "other choices", own, "send these, or leave choices out")
    form: FormName = "messages" if question.messages is not None else "prompt"
    if form not in rows.forms:
        [expected] = rows.forms
        return _Departure(form, f"a question as {form}", f"questions as {expected}", f"ask it as {expected}")
    choices = question.choices or prompt.choices
    if choices is not None and not rows.fewest_choices <= len(choices) <= rows.most_choices:
        return _Departure("choices", f"{len(choices)} choices", f"{rows.n_choices} choices", f"offer {rows.n_choices}")
    if other_wording == "input":
        others = "an input with items of others than users"
        return _Departure(other_wording, others, "texts alone", "send the user's text alone")
    if other_wording is not None:
        own = f"its own {other_wording}"
        return _Departure(other_wording, f"other {other_wording}", own, "send those of the adapter's card")
    return None
