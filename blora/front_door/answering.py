"""Answers to questions in this process, by the validation, decision and response code of `blora serve`.

This process and a server therefore give the same answers, up to rounding, which depends on the batch.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

from pydantic import ValidationError
from torch import Tensor

from blora.base_model import BaseModel
from blora.client import answers
from blora.decision.stopping import looks
from blora.errors import BloraError, PromptError
from blora.inference.packing import pack
from blora.posterior.decision_head import Features
from blora.server.batch.rows import question_of
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.outcomes import draws_suffice, outcome
from blora.server.engines.protocol import Job
from blora.server.errors import ServerError
from blora.server.prediction.choices import offered_choices
from blora.server.prediction.policies import InForce, check_job, policy_for, stop_of
from blora.server.prediction.response import answered
from blora.server.scheduling.batcher import Completed
from blora.server.schemas.requests import PredictRequest
from blora.server.schemas.validation import invalid_request
from blora.training.evaluate import score_packed

__all__ = ["Question", "answer_all"]

T = TypeVar("T")

Question: TypeAlias = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class _Asked:
    """A question that is ready to be scored, and the policy for its answer."""

    request: PredictRequest
    job: Job
    in_force: InForce | None


def answer_all(
    base: BaseModel,
    handle: AdapterHandle,
    questions: Sequence[Question],
    *,
    choices: Sequence[str] | None,
    policy: Mapping[str, float] | None,
) -> list[answers.Prediction | BloraError]:
    """Return the prediction for each question, or the error that prevented it.

    Args:
        base: the base model, with the adapter's modules prepared for draws.
        handle: the adapter.
        questions: texts, or the fields of requests.
        choices: default choices for questions without any.
        policy: policy for all questions; None for the adapter's own.
    """
    more = (
        ({"choices": choices if isinstance(choices, str) else [*choices]} if choices is not None else {}),
        ({"policy": dict(policy)} if policy is not None else {}),
    )
    asked = [_caught(partial(_ask, base, handle, question, *more)) for question in questions]
    rows = [one.job.row for one in asked if isinstance(one, _Asked)]
    began = time.perf_counter()
    distances: list[float | None] = [None] * len(rows)

    def measure(places: Sequence[int], features: Features) -> None:
        for place, distance in zip(places, handle.distances(features), strict=True):
            distances[place] = distance

    draws = handle.bank.draws
    scores = score_packed(base.model, rows, draws, about="predicting", read=measure).unbind(1) if rows else ()
    seconds = time.perf_counter() - began
    scored = zip(scores, distances, strict=True)
    return [
        one if isinstance(one, BloraError) else _caught(partial(_answer, base, one, *next(scored), seconds))
        for one in asked
    ]


def _ask(
    base: BaseModel, handle: AdapterHandle, question: Question, usual: Mapping[str, Any], policy: Mapping[str, Any]
) -> _Asked:
    """Return a validated and tokenised question.

    Args:
        base: the base model.
        handle: the adapter.
        question: a text, or the fields of a request.
        usual: default fields, which the question's own fields override.
        policy: the `policy` field as a mapping; empty if none was given.

    Raises:
        PromptError: if the question is invalid, relies on a calibration that does not cover it, or lacks draws for a
            threshold of its policy.
    """
    read = question_of({"prompt": question} if isinstance(question, str) else question, policy.get("policy"))
    try:
        if read.error is not None:
            raise read.error
        request = PredictRequest.model_validate({**usual, **read.asked, **policy})
        in_force = policy_for(request, handle)
        row = pack(
            base.tokenizer,
            choices=offered_choices(request, handle),
            config=handle.config.prompt,
            prompt=request.prompt,
            messages=[turn.model_dump() for turn in request.messages] if request.messages else None,
            max_length=base.max_length,
            encoder=base.is_encoder,
        )
        job = Job(handle, row, handle.bank.n_samples, None, stop_of(in_force, handle))
        check_job(in_force, job)
    except ValidationError as exc:
        raise _refused(invalid_request(exc.errors(include_url=False))) from exc
    except ServerError as exc:
        raise _refused(exc) from exc
    return _Asked(request, job, in_force)


def _answer(
    base: BaseModel,
    asked: _Asked,
    log_probs: Tensor,
    distance: float | None,
    seconds: float,
) -> answers.Prediction:
    """Return the prediction from a row's log-probabilities (S, C), and its distance from the training rows.

    Raises:
        NumericalError: if a probability is not finite.
    """
    job = asked.job
    found = outcome(job, log_probs[:, : job.row.n_choices], distance, f"{base.device} in {base.dtype}")
    probs = found.probs
    if job.stop is not None:  # drop the draws that the server would not have taken
        probs = probs[: next((n for n in looks(len(probs)) if draws_suffice(job, probs[:n])), len(probs))]
    done = Completed(replace(found, probs=probs), queue_s=0.0, compute_s=seconds)
    return answered(asked.request, job, asked.in_force, done, model=base.name).response


def _caught(work: Callable[[], T]) -> T | BloraError:
    """Call a function and return its result, or the BloraError that it raised."""
    try:
        return work()
    except BloraError as exc:
        return exc


def _refused(error: ServerError) -> PromptError:
    """Return a server's error about a question as a PromptError."""
    return PromptError(error.message, param=error.param or "prompt")
