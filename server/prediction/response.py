"""Answers built from the draws of a question, in the shape that clients read."""

import time
from dataclasses import dataclass

from blora.client import answers
from blora.decision.abstention import Decision, decide
from blora.decision.uncertainty import Prediction, summarize
from blora.server.engines.protocol import Job, Outcome
from blora.server.prediction.cards import adapter_ref
from blora.server.prediction.ids import prediction_id
from blora.server.prediction.policies import InForce, Wording, prediction_set
from blora.server.scheduling.batcher import Completed
from blora.server.schemas.requests import PredictRequest

__all__ = ["Answered", "answered"]


@dataclass(frozen=True, slots=True)
class Answered:
    """An answer, and the numbers behind it.

    Attributes:
        prediction: what the draws say.
        decision: whether the answer may go out.
        likely: the prediction set, None where the calibration does not speak of the question.
        response: all of that for the client.
    """

    prediction: Prediction
    decision: Decision
    likely: list[str] | None
    response: answers.Prediction


def answered(
    question: PredictRequest,
    job: Job,
    in_force: InForce | None,
    done: Completed[Outcome],
    *,
    model: str,
    other_wording: Wording | None = None,
) -> Answered:
    """Return the answer to a question from the engine's result.

    Args:
        question: as asked.
        job: the question as the engine took it.
        in_force: the policy that decides, None for none.
        done: the engine's result, with queue and compute times.
        model: name of the base model.
        other_wording: what the request words differently from the adapter's own question; None for nothing.
    """
    prediction = summarize(done.result.probs, done.result.familiarity, done.result.guesses)
    decision = decide(prediction, in_force.policy if in_force else None)
    choices = job.row.choices
    likely = prediction_set(
        question,
        job.handle,
        prediction,
        choices,
        guesses=done.result.guesses > 0,
        other_wording=other_wording,
    )
    leader = choices[prediction.top]
    response = answers.Prediction(
        id=prediction_id(),
        created=int(time.time()),
        model=model,
        adapter=adapter_ref(job.handle),
        answer=None if decision.abstained else leader,
        top_choice=leader,
        probabilities=[
            answers.ChoiceProbability(choice=choice, probability=probability, std=std)
            for choice, probability, std in zip(choices, prediction.probabilities, prediction.std, strict=True)
        ],
        **prediction.scores(),
        prediction_set=likely,
        abstained=decision.abstained,
        abstain_reasons=[
            answers.AbstainReason(reason=reason.name, value=reason.value, threshold=reason.threshold)
            for reason in decision.reasons
        ],
        policy=in_force.shown() if in_force else None,
        n_samples=len(done.result.probs),
        usage=answers.Usage(
            prompt_tokens=job.row.prompt_tokens,
            cached_tokens=done.result.cached_tokens,
            scored_tokens=job.row.scored_tokens,
        ),
        timing=answers.Timing(queue_ms=1e3 * done.queue_s, compute_ms=1e3 * done.compute_s),
    )
    warnings = [
        *(["not_calibrated"] if job.handle.not_calibrated else []),
        *(["without_head"] if job.kind == "below head" else []),
        *(["shadowed_choice"] if job.row.shadowed else []),
        *(["mostly_guesses"] if done.result.guesses else []),
        *([f"other_{other_wording}"] if other_wording is not None else []),
    ]
    if warnings:
        response = response.model_copy(update={"warnings": warnings})
    return Answered(prediction, decision, likely, response)
