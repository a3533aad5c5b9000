"""What the prompts of an adapter begin with, noticed as they come and remembered while it is used."""

from collections import OrderedDict, defaultdict
from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedModel

from blora.inference.fork import runs_in_parts
from blora.inference.packing import PackedRow
from blora.inference.prefix import MIN_PREFIX, Prefix, common_tokens
from server.engines.protocol import Job
from server.registry import AdapterHandle

__all__ = ["Prefixes"]


class Prefixes:
    """Beginnings that two prompts of an adapter had in common, the least recently used forgotten first.

    Args:
        model: the base model; one that cannot be run in parts has none remembered.
        max_tokens: bound of the tokens of all beginnings together.
        max_batch_tokens: bound of tokens times draws of a forward pass.
    """

    def __init__(self, model: PreTrainedModel, *, max_tokens: int, max_batch_tokens: int) -> None:
        self._model = model
        self._max_tokens = max_tokens if runs_in_parts(model) else 0
        self._max_batch_tokens = max_batch_tokens
        self._last: dict[str, tuple[int, ...]] = {}  # an adapter's most recent prompt, by digest
        self._kept: OrderedDict[tuple[str, tuple[int, ...]], Prefix] = OrderedDict()

    def split(self, jobs: Sequence[Job]) -> dict[Prefix | None, list[int]]:
        """Which jobs begin with what, the longest that is known of each; None: with nothing known.

        Only under draws of the adapter's bank, which recur. What recurs for the first time among these jobs is known
        for all of them.
        """
        own = [place for place, job in enumerate(jobs) if job.in_bank and self._max_tokens >= MIN_PREFIX]
        for place in own:
            self._notice(jobs[place].handle, _prompt(jobs[place]))
        found: dict[Prefix | None, list[int]] = defaultdict(list)
        for place, job in enumerate(jobs):
            found[self._longest(job.handle.digest, _prompt(job)) if place in own else None].append(place)
        return found

    def forget(self, digest: str) -> None:
        """Everything that an adapter's prompts begin with."""
        self._last.pop(digest, None)
        for key in [key for key in self._kept if key[0] == digest]:
            del self._kept[key]

    def _notice(self, handle: AdapterHandle, prompt: tuple[int, ...]) -> None:
        """Remembers what a prompt shares with the one before, if that is much more than what is remembered already."""
        last, self._last[handle.digest] = self._last.get(handle.digest, ()), prompt
        n_tokens = min(common_tokens([last, prompt]), self._max_tokens)
        known = self._longest(handle.digest, prompt)
        if n_tokens < MIN_PREFIX + (len(known.tokens) if known is not None else 0):
            return
        tokens, draws = prompt[:n_tokens], handle.bank.draws
        self._kept[handle.digest, tokens] = Prefix(self._model, tokens, draws, max_batch_tokens=self._max_batch_tokens)
        while sum(len(tokens) for _, tokens in self._kept) > self._max_tokens:
            self._kept.popitem(last=False)

    def _longest(self, digest: str, prompt: tuple[int, ...]) -> Prefix | None:
        fits = [
            (owner, tokens)
            for owner, tokens in self._kept
            if owner == digest and len(tokens) < len(prompt) and prompt[: len(tokens)] == tokens
        ]
        if not fits:
            return None
        best = max(fits, key=lambda fit: len(fit[1]))
        self._kept.move_to_end(best)
        return self._kept[best]


def _prompt(job: Job) -> tuple[int, ...]:
    return cast(PackedRow, job.row).prompt
