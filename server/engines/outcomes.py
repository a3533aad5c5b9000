"""Probabilities and outcomes of jobs, from the log-probabilities of their choices."""

import torch
from torch import Tensor

from blora.config import SamplingConfig
from blora.decision.stopping import settled
from blora.decision.temperature import temper
from blora.errors import NumericalError
from blora.server.engines.protocol import Job, Outcome

__all__ = ["draws_suffice", "outcome", "probabilities"]


def draws_suffice(job: Job, probs: Tensor) -> bool:
    """Return whether the probabilities (s, C) of the first s draws settle the job's decision."""
    if job.stop is None:
        return len(probs) == job.n_samples
    return bool(settled(probs[:, None], job.n_samples, job.stop.policy, job.stop.error))


def outcome(job: Job, log_probs: Tensor, distance: float | None, where: str) -> Outcome:
    """Return what log-probabilities (S, C) and the question's distance from the training rows, if known, come to.

    Raises:
        NumericalError: if a probability is not finite.
    """
    probs = probabilities(job, log_probs, where)
    if distance is None:
        return Outcome(probs)
    guesses = job.handle.guesses(distance) if job.as_trained else 0.0
    return Outcome(probs, job.handle.p_value(distance), guesses=guesses)


def probabilities(job: Job, log_probs: Tensor, where: str) -> Tensor:
    """Return probabilities (S, C), recalibrated for the adapter's own scoring and readout.

    Args:
        job: the scored job.
        log_probs: (S, C) log-probabilities, normalised over the choices.
        where: device and dtype, for the message.

    Raises:
        NumericalError: if a probability is not finite.
    """
    sampling = job.handle.config.sampling if job.as_trained else SamplingConfig()
    present = torch.ones(log_probs.shape[-1:], dtype=torch.bool)
    probs = temper(log_probs, sampling.temperature, sampling.lapse, present)
    if not bool(probs.isfinite().all()):
        raise NumericalError(
            f"got NaN or infinity from adapter {job.handle.name!r} on {where}, expected probabilities: "
            "try --dtype float32, or another adapter"
        )
    return probs
