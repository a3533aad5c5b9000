"""Reading of hidden states for heads and familiarities: one pass for all adapters that read the same states.

Adapters with a head on the frozen base model at the same depths read the same, so that several questions about one
text, each with an adapter of its own, cost one pass over that text.
"""

from collections import defaultdict
from collections.abc import Hashable, Iterator, Sequence

import torch

from blora.base_model import BaseModel
from blora.inference.batches import by_length
from blora.inference.checkpoints import between
from blora.inference.packing import PackedRow
from blora.inference.prefix import HeadPrefix, Prefix
from blora.inference.reading import as_read, head_log_probs, read_rows
from blora.posterior.decision_head import Features, HeadDraws
from blora.server.engines.jobs import draws_key, draws_of
from blora.server.engines.outcomes import outcome
from blora.server.engines.prefixes import AnyPrefix
from blora.server.engines.protocol import Job, Outcome

__all__ = ["familiarities", "head_outcomes"]


@torch.no_grad()
def head_outcomes(
    base: BaseModel, prefix: AnyPrefix | None, jobs: Sequence[Job], max_batch_tokens: int
) -> list[Outcome]:
    """Return the outcomes of jobs for heads.

    Args:
        base: the base model.
        prefix: a common prefix of all jobs, None for none.
        jobs: the jobs.
        max_batch_tokens: most padded tokens in a forward pass.

    Raises:
        NumericalError: if a probability is not finite.
    """
    by_place: dict[int, Outcome] = {}
    alike = _grouped(range(len(jobs)), [(job.handle.reading, _is_read(prefix, job)) for job in jobs])
    for read in between(part for places in alike for part in _fitting(jobs, places, prefix, max_batch_tokens)):
        features = _features(base, prefix, [jobs[place] for place in read])
        for same in _grouped(range(len(read)), [draws_key(jobs[place]) for place in read]):
            own = [jobs[read[k]] for k in same]
            draws = draws_of(own[0], base.device)
            assert isinstance(draws, HeadDraws)  # the adapter has a head
            found = features.at(same)
            log_probs = head_log_probs(draws, [job.row for job in own], found).cpu()
            distances = own[0].handle.distances(found)
            for k, job, of_row, distance in zip(same, own, log_probs.unbind(1), distances, strict=True):
                scores = of_row[:, : job.row.n_choices]
                by_place[read[k]] = outcome(job, scores, distance, f"{base.device} in {base.dtype}")
    return [by_place[place] for place in range(len(jobs))]


@torch.no_grad()
def familiarities(base: BaseModel, prefix: AnyPrefix | None, jobs: Sequence[Job]) -> list[float | None]:
    """Return the familiarity of questions that the language model scores; reading their states takes a pass."""
    found: list[float | None] = [None] * len(jobs)
    asked = [place for place, job in enumerate(jobs) if job.handle.familiarity is not None]
    keys = [(jobs[place].handle, _is_read(prefix, jobs[place])) for place in asked]
    for own in between(_grouped(asked, keys)):
        handle, features = jobs[own[0]].handle, _features(base, prefix, [jobs[place] for place in own])
        for place, distance in zip(own, handle.distances(features), strict=True):
            found[place] = handle.p_value(distance) if distance is not None else None
    return found


def _features(base: BaseModel, prefix: AnyPrefix | None, jobs: Sequence[Job]) -> Features:
    """Return what the heads of jobs with one reading read, from a pass over the different questions among them."""
    draws = jobs[0].handle.bank.draws
    assert isinstance(draws, HeadDraws)  # only heads read states, and so does a familiarity
    assert not isinstance(prefix, Prefix)  # a head's
    if prefix is not None and (read := prefix.take(_row(jobs[0]))) is not None:
        return read.at([0] * len(jobs))
    different: dict[Hashable, int] = {}
    rows: list[PackedRow] = []
    places = []
    for job in jobs:
        row = _row(job)
        place = different.setdefault(row.read_key, len(rows))
        if place == len(rows):
            rows.append(row)
        places.append(place)
    return read_rows(base.model, rows, draws.head.config, draws.lora, prefix).at(places)


def _fitting(
    jobs: Sequence[Job], places: Sequence[int], prefix: AnyPrefix | None, max_batch_tokens: int
) -> Iterator[list[int]]:
    """Yield the places of jobs in parts whose different questions fit into a forward pass after the prefix."""
    n_past = len(prefix.tokens) if prefix is not None else 0
    same = _grouped(places, [jobs[place].row.read_key for place in places])
    rows = [jobs[own[0]].row.after(n_past) for own in same]
    for picked in by_length(rows, max_batch_tokens):
        yield [place for i in picked for place in same[i]]


def _is_read(prefix: AnyPrefix | None, job: Job) -> bool:
    """Return whether a job's row was read with the prefix, and its features are still there."""
    return isinstance(prefix, HeadPrefix) and prefix.has_read(_row(job))


def _row(job: Job) -> PackedRow:
    """Return a job's row as the head of its adapter reads it."""
    draws = job.handle.bank.draws
    return as_read(job.row, draws.head) if isinstance(draws, HeadDraws) else job.row


def _grouped(places: Sequence[int], keys: Sequence[Hashable]) -> list[list[int]]:
    """Return the places of each key."""
    groups: dict[Hashable, list[int]] = defaultdict(list)
    for place, key in zip(places, keys, strict=True):
        groups[key].append(place)
    return list(groups.values())
