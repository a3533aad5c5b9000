"""Detection and caching of the prefixes that the prompts of an adapter share, or of adapters with the same reading."""

import threading
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from transformers import PreTrainedModel

from blora.inference.branches import prefix_of
from blora.inference.fork import runs_in_parts
from blora.inference.packing import PackedRow
from blora.inference.prefix import MIN_PREFIX, HeadPrefix, Prefix, common_tokens
from blora.server.engines.protocol import Job

__all__ = ["AnyPrefix", "Prefixes"]

AnyPrefix = Prefix | HeadPrefix
# Rows by prompt, of which those that a head reads alike count once.
_Questions = dict[tuple[int, ...], dict[Hashable, PackedRow]]

# Most clients, each counted once per reading, whose latest prompts are remembered.
_MOST_CLIENTS = 256


@dataclass(frozen=True, slots=True)
class _Kept:
    """A cached prefix, its memory, and the clients for whom it is used."""

    prefix: AnyPrefix
    n_bytes: int
    clients: set[str | None]


class Prefixes:
    """Cache of the prefixes that two prompts of a client had in common, with least-recently-used eviction.

    A prefix is used for the clients whose own prompts had it in common, so that its length tells a client nothing about
    the prompts of another one; clients with the same prefix share its memory.

    Safe for several threads: only one run at a time splits jobs, but adapters are loaded and unloaded meanwhile.

    Args:
        model: the base model; nothing is cached for one that cannot be run in parts.
        max_bytes: most memory of all prefixes, each under all draws of its adapter's bank.
        max_batch_tokens: most tokens x draws in a forward pass.
    """

    def __init__(self, model: PreTrainedModel, *, max_bytes: int, max_batch_tokens: int) -> None:
        self._model = model
        self._max_bytes = max_bytes if runs_in_parts(model) else 0
        self._max_batch_tokens = max_batch_tokens
        self._served: Counter[str] = Counter()  # number of handles by reading
        # Latest prompts by reading and client, the least recent first.
        self._last: OrderedDict[tuple[str, str | None], tuple[int, ...]] = OrderedDict()
        self._longest_kept: dict[str, int] = {}  # longest prefix, in tokens, once a longer one has exceeded the memory
        # The least recently used first. No OrderedDict, which hashes every key, as long as it is, when it is walked.
        self._kept: dict[tuple[str, tuple[int, ...]], _Kept] = {}
        self._begun: WeakKeyDictionary[AnyPrefix, set[str | None]] = WeakKeyDictionary()  # clients with earlier batches
        self._changing = threading.Lock()  # guards all of these; never held during a computation

    def serve(self, reading: str) -> None:
        """Begin to look for prefixes of the prompts of an adapter with that reading, see `AdapterHandle`."""
        with self._changing:
            self._served[reading] += 1

    def forget(self, reading: str) -> None:
        """Undo one `serve`; the last one drops all prefixes of the reading."""
        with self._changing:
            self._served[reading] -= 1
            if self._served[reading] > 0:
                return
            self._served.pop(reading, None)
            self._longest_kept.pop(reading, None)
            for prompt in [prompt for prompt in self._last if prompt[0] == reading]:
                del self._last[prompt]
            for key in [key for key in self._kept if key[0] == reading]:
                del self._kept[key]

    def clear(self) -> bool:
        """Drop all prefixes and the clients' latest prompts, and return whether there were any prefixes."""
        with self._changing:
            self._last.clear()
            had_any = bool(self._kept)
            self._kept.clear()
            return had_any

    def split(self, jobs: Sequence[Job], *, notice: bool = True) -> dict[AnyPrefix | None, list[int]]:
        """Return the indices of the jobs that begin with each cached prefix, by the longest match; None: no match.

        Only jobs under draws of the adapter's bank, which recur, can match. With `notice`, a prefix that recurs for the
        first time among these jobs is cached and used for all of them.
        """
        own = {
            place: job
            for place, job in enumerate(jobs)
            if self._max_bytes and job.in_bank and self._served[job.handle.reading] > 0
        }
        alike: dict[tuple[str, str | None], _Questions] = defaultdict(lambda: defaultdict(dict))
        for job in own.values():
            row = job.row
            alike[job.handle.reading, job.client][row.prompt].setdefault(row.read_key, row)
        # In this order prompts with the same beginning follow one another.
        for job in sorted(own.values(), key=lambda job: job.row.prompt) if notice else ():
            self._notice(job, alike[job.handle.reading, job.client])
        found: dict[AnyPrefix | None, list[int]] = defaultdict(list)
        for place, job in enumerate(jobs):
            found[self._longest(job) if place in own else None].append(place)
        return found

    def cached_tokens(self, prefix: AnyPrefix | None, jobs: Sequence[Job]) -> list[int]:
        """Return the tokens of a prefix for each job of a batch, none for jobs of the client's first such batch."""
        if prefix is None:
            return [0] * len(jobs)
        with self._changing:
            begun = self._begun.get(prefix, set())
            self._begun[prefix] = begun | {job.client for job in jobs}
        return [len(prefix.tokens) if job.client in begun else 0 for job in jobs]

    def _notice(self, job: Job, alike: _Questions) -> None:
        """Cache the prefix that a prompt shares with the client's last one, if it is much longer than the cached ones.

        For a head, it is read with the longest of the batch's rows alike that begins with it, which then needs no other
        pass.
        """
        reading, bank, prompt = job.handle.reading, job.handle.bank, job.row.prompt
        with self._changing:
            last = self._last.pop((reading, job.client), ())
            self._last[reading, job.client] = prompt
            if len(self._last) > _MOST_CLIENTS:
                self._last.popitem(last=False)
            if prompt == last and len(alike[prompt]) == 1:
                return  # one question, perhaps to several adapters
            n_tokens = min(common_tokens([last, prompt]), self._longest_kept.get(reading, len(prompt)))
            tokens = prompt[:n_tokens]
            if (kept := self._kept.get((reading, tokens))) is not None and job.client in kept.clients:
                return
        known = self._longest(job)
        if n_tokens < MIN_PREFIX + (len(known.tokens) if known is not None else 0):
            return
        with self._changing:
            if (kept := self._kept.get((reading, tokens))) is not None:
                kept.clients.add(job.client)
                return
        begun = [rows for asked, rows in alike.items() if len(asked) > n_tokens and asked[:n_tokens] == tokens]
        longest = max((row for rows in begun for row in rows.values()), key=lambda row: row.n_tokens)
        prefix = prefix_of(self._model, longest, n_tokens, bank.draws, self._max_batch_tokens)
        n_bytes = prefix.n_bytes(bank.n_samples)
        with self._changing:
            if self._served[reading] <= 0:  # the adapter was unloaded while its prefix was computed
                return
            if n_bytes > self._max_bytes:
                self._longest_kept[reading] = n_tokens * self._max_bytes // n_bytes
                return
            self._kept[reading, tokens] = _Kept(prefix, n_bytes, {job.client})
            while sum(kept.n_bytes for kept in self._kept.values()) > self._max_bytes:
                del self._kept[next(iter(self._kept))]

    def _longest(self, job: Job) -> AnyPrefix | None:
        """Return the longest cached prefix of a job's prompt that the client's own prompts had in common."""
        reading, prompt = job.handle.reading, job.row.prompt
        with self._changing:
            fits = [
                (owner, tokens)
                for (owner, tokens), kept in self._kept.items()
                if owner == reading
                and job.client in kept.clients
                and len(tokens) < len(prompt)
                and prompt[len(tokens) - 1] == tokens[-1]  # most others differ here, and need no copy
                and prompt[: len(tokens)] == tokens
            ]
            if not fits:
                return None
            best = max(fits, key=lambda fit: len(fit[1]))
            self._kept[best] = kept = self._kept.pop(best)  # as the last
            return kept.prefix
