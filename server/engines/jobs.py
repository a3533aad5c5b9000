"""Jobs of the engine in this process: their rows, their draws, and groups of similar length."""

from collections.abc import Hashable, Sequence
from dataclasses import replace

import torch

from blora.inference.checkpoints import checkpoint
from blora.posterior.bank import SampleBank
from blora.posterior.decision_head import HeadDraws
from blora.posterior.draws import Draws
from blora.server.engines.protocol import Job

__all__ = ["draws_key", "draws_of", "of_similar_length", "shared_reading"]

# Tokens that take a processor as long as the fixed part of a forward pass, which reads all weights. Measured with the
# embedded base model as 20 in float32 and 35 in bfloat16.
_PASS_TOKENS = 32


def draws_key(job: Job) -> tuple[str, int | None]:
    """Return the key of a job's draws: jobs of one group with equal keys share their draws."""
    return job.handle.digest, job.seed


def draws_of(job: Job, device: torch.device) -> Draws | HeadDraws:
    """Return a job's draws on a device: from the bank if it holds them, otherwise fresh ones, made between checkpoints.

    Draws nest: the first draws do not depend on the number of draws.
    """
    bank = job.handle.bank
    if job.in_bank:
        return bank.first(job.n_samples)
    seed = bank.seed if job.seed is None else job.seed
    made = SampleBank.draw(job.handle.posterior, job.handle.digest, job.n_samples, seed, checkpoint).draws
    if isinstance(made, HeadDraws) and isinstance(bank.draws, HeadDraws):
        return replace(bank.draws, weights=made.weights.to(device))  # all else is there, and is large
    return made.to(device)


def shared_reading(job: Job) -> tuple[Hashable, tuple[int, ...]]:
    """Return what jobs may share: a key of the jobs whose prompts a run reads alike, and the tokens of the prompt.

    Only what a head reads of a prompt is the same for all of its draws. There are no tokens for other jobs.
    """
    reads_once = job.kind == "head" and job.in_bank
    return (job.handle.reading, job.group), job.row.prompt if reads_once else ()


def of_similar_length(jobs: Sequence[Job]) -> list[list[int]]:
    """Return the places of jobs in groups of similar length, so that padding costs no more than further passes.

    The rows of a group have at most 32 tokens of padding in all. A question that several adapters answer counts once.
    """
    rows = [job.row for job in jobs]
    groups: list[list[int]] = []
    different: set[tuple[object, ...]] = set()
    prompt = choices = total = 0  # longest parts of the different rows of the last group, and all of their tokens
    for place in sorted(range(len(rows)), key=lambda place: -rows[place].n_tokens):
        row = rows[place]
        key = row.prompt, row.continuations
        if not groups or key not in different:
            prompt, choices = max(prompt, row.prompt_tokens), max(choices, row.n_tokens - row.prompt_tokens)
            total += row.n_tokens
            if not groups or (len(different) + 1) * (prompt + choices) - total > _PASS_TOKENS:
                groups.append([])
                different.clear()
                prompt, choices, total = row.prompt_tokens, row.n_tokens - row.prompt_tokens, row.n_tokens
            different.add(key)
        groups[-1].append(place)
    return groups
