"""Prefixes that are noticed, cached and dropped."""

import dataclasses

import pytest
import torch
from transformers import PreTrainedModel

from blora.inference.fork import forbid_partial_runs
from blora.inference.packing import PackedRow
from blora.inference.prefix import MIN_PREFIX
from blora.posterior.bank import SampleBank
from blora.server.engines import prefixes as module
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.prefixes import AnyPrefix, Prefixes
from blora.server.engines.protocol import Job
from tests.scenarios import injected, random_draws
from tests.server.fakes import handle

Setup = tuple[PreTrainedModel, AdapterHandle, AdapterHandle]


@pytest.fixture(scope="module")
def setup() -> Setup:
    """A model and two adapters with banks of four draws."""
    model, modules = injected()
    one, two = (
        dataclasses.replace(
            handle(name, f"sha256:{name}"), bank=SampleBank(name, 7, random_draws(modules, 4, seed=seed))
        )
        for seed, name in enumerate(("one", "two"))
    )
    return model, one, two


# Keys and values of 2 heads of 8 float32 in 2 layers, under 4 draws.
BYTES_PER_TOKEN = 2 * 2 * 8 * 4 * 2 * 4


def prefixes(setup: Setup, max_tokens: int = 1000) -> Prefixes:
    """Return prefixes that serve both adapters."""
    model, *adapters = setup
    known = Prefixes(model, max_bytes=max_tokens * BYTES_PER_TOKEN, max_batch_tokens=4096)
    for adapter in adapters:
        known.serve(adapter.reading)
    return known


def job(
    adapter: AdapterHandle, *prompt: int, n_samples: int = 4, seed: int | None = None, client: str | None = None
) -> Job:
    return Job(adapter, PackedRow(prompt, ((1,), (2,)), "none"), n_samples, seed, None, client)


def counted(known: Prefixes, *jobs: Job) -> list[int]:
    """Return the tokens of each job of a batch that count as cached."""
    found = [0] * len(jobs)
    for prefix, places in known.split(jobs).items():
        for place, tokens in zip(places, known.cached_tokens(prefix, [jobs[at] for at in places]), strict=True):
            found[place] = tokens
    return found


def lengths(known: Prefixes, *jobs: Job) -> list[int]:
    """Return the number of cached tokens of each job."""
    found = [0] * len(jobs)
    for prefix, places in known.split(jobs).items():
        for place in places:
            found[place] = len(prefix.tokens) if prefix is not None else 0
    return found


HEAD = tuple(range(40))


def test_what_two_prompts_share_is_remembered_from_the_second_on(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    assert lengths(known, job(one, *HEAD, 50)) == [0]
    assert lengths(known, job(one, *HEAD, 51, 52)) == [40]
    assert lengths(known, job(one, *HEAD, 53), job(one, 60, 61), job(one, *HEAD[:30])) == [40, 0, 0]
    assert lengths(known, job(one, *HEAD)) == [0]  # a row keeps at least one token


@pytest.mark.parametrize("place", [0, 20, 38, 39])
def test_a_prompt_that_differs_from_a_prefix_in_one_token_does_not_begin_with_it(setup: Setup, place: int) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    assert lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51)) == [40, 40]
    other = (*HEAD[:place], 99, *HEAD[place + 1 :])
    [prefix] = known.split([job(one, *other, 52)])
    assert prefix is None or prefix.tokens == other[: len(prefix.tokens)]
    assert lengths(known, job(one, *HEAD, 53)) == [40]


def test_tokens_count_as_cached_from_the_batch_after_the_one_that_computes_them(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    jobs = [job(one, *HEAD, k) for k in (50, 51)] + [job(one, 60, 61)]
    assert [counted(known, *jobs) for _ in range(3)] == [[0, 0, 0], [40, 40, 0], [40, 40, 0]]


@pytest.mark.parametrize("n_known", [0, 36, 40])
def test_what_counts_as_cached_tells_a_client_nothing_of_another_ones_prompts(setup: Setup, n_known: int) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    for k in (1, 2, 3):
        counted(known, job(one, *HEAD[:n_known], *range(60, 100), k, client="victim"))
        counted(known, job(one, *HEAD[:n_known], k, client="victim"))
    guesses = [counted(known, job(one, *HEAD, k, client="guesser")) for k in (50, 51, 52)]
    assert guesses == [[0], [0], [40]]


def test_clients_with_the_same_prefix_share_its_memory(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup, max_tokens=60)
    jobs = [job(one, *HEAD, k, client=client) for client in ("a", "b") for k in (50, 51)]
    assert counted(known, *jobs[:2]) == counted(known, *jobs[2:]) == [0, 0]
    assert counted(known, *jobs, job(one, *HEAD, 52, client="c")) == [40] * 4 + [0]
    assert len(known.split(jobs)) == 1


def test_jobs_of_one_batch_teach_each_other(setup: Setup) -> None:
    _, one, _ = setup
    assert lengths(prefixes(setup), *(job(one, *HEAD, k) for k in (50, 51, 52))) == [40, 40, 40]


def test_adapters_do_not_share(setup: Setup) -> None:
    _, one, two = setup
    known = prefixes(setup)
    assert lengths(known, job(one, *HEAD, 50), job(two, *HEAD, 51), job(one, *HEAD, 52)) == [40, 0, 40]


@pytest.mark.parametrize("other", [{"seed": 1}, {"n_samples": 5}])
def test_draws_that_the_bank_lacks_have_none(setup: Setup, other: dict[str, int]) -> None:
    _, one, _ = setup
    jobs = [job(one, *HEAD, k, **other) for k in (50, 51)]
    assert lengths(prefixes(setup), *jobs, job(one, *HEAD, 52)) == [0, 0, 0]


def test_fewer_draws_of_the_bank_share_what_is_remembered(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51))
    [few, every] = (list(known.split([job(one, *HEAD, 52, n_samples=n, seed=seed)])) for n, seed in ((2, None), (4, 7)))
    assert few == every
    assert few[0] is not None


def test_short_beginnings_are_not_worth_it(setup: Setup) -> None:
    _, one, _ = setup
    head = HEAD[: MIN_PREFIX - 1]
    assert lengths(prefixes(setup), job(one, *head, 50), job(one, *head, 51)) == [0, 0]


def test_a_longer_beginning_comes_beside_a_shorter_one_where_it_saves_much(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    longer = (*HEAD, *range(60, 60 + MIN_PREFIX))
    assert lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51)) == [40, 40]
    assert lengths(known, job(one, *HEAD, *range(90, 100), 1), job(one, *HEAD, *range(90, 100), 2)) == [40, 40]
    assert lengths(known, job(one, *longer, 1), job(one, *longer, 2)) == [len(longer)] * 2
    assert lengths(known, job(one, *longer, 3), job(one, *HEAD, 52)) == [len(longer), 40]


def test_the_least_recently_used_is_forgotten_first(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup, max_tokens=85)
    heads = [tuple(range(start, start + 40)) for start in (0, 40, 80)]
    for head in heads[:2]:
        assert lengths(known, job(one, *head, 1), job(one, *head, 2)) == [40, 40]
    assert lengths(known, job(one, *heads[0], 3)) == [40]
    assert lengths(known, job(one, *heads[2], 1), job(one, *heads[2], 2)) == [40, 40]
    assert lengths(known, job(one, *heads[0], 4), job(one, *heads[1], 3)) == [40, 0]


def test_no_more_is_remembered_than_allowed(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup, max_tokens=35)
    assert lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51)) == [0, 0]  # it finds out how much 40 tokens take
    assert lengths(known, job(one, *HEAD, 52)) == [35]
    assert lengths(prefixes(setup, max_tokens=31), *(job(one, *HEAD, k) for k in range(50, 60))) == [0] * 10


def test_an_adapter_that_is_unloaded_is_forgotten_and_no_other(setup: Setup) -> None:
    _, one, two = setup
    known = prefixes(setup)
    for adapter in (one, two):
        assert lengths(known, job(adapter, *HEAD, 50), job(adapter, *HEAD, 51)) == [40, 40]
    known.forget(one.reading)
    late = [job(one, *HEAD, k) for k in (52, 53)]  # in flight when it was unloaded
    assert lengths(known, *late, job(two, *HEAD, 52)) == [0, 0, 40]
    known.serve(one.reading)
    assert lengths(known, job(one, *HEAD, 54)) == [0]


def test_contents_under_two_names_are_remembered_until_both_are_gone(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    known.serve(one.reading)
    assert lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51)) == [40, 40]
    known.forget(one.reading)
    assert lengths(known, job(one, *HEAD, 52)) == [40]


def test_all_memory_is_given_back_when_it_is_needed_elsewhere(setup: Setup) -> None:
    _, one, _ = setup
    known = prefixes(setup)
    lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51))
    assert known.clear()
    assert not known.clear()
    assert [lengths(known, job(one, *HEAD, k)) for k in (52, 53)] == [[0], [40]]  # prompts are forgotten as well


def test_only_the_clients_that_asked_last_are_remembered(setup: Setup, monkeypatch: pytest.MonkeyPatch) -> None:
    _, one, two = setup
    monkeypatch.setattr(module, "_MOST_CLIENTS", 3)
    known = prefixes(setup)
    for k, client in enumerate("abcad"):
        lengths(known, job(one, *range(30 * k, 30 * k + 30), k, client=client))
    assert [client for _, client in known._last] == ["c", "a", "d"]
    lengths(known, job(two, *HEAD, 50, client="e"))
    known.forget(one.reading)
    assert [client for _, client in known._last] == ["e"]


def test_prefixes_are_looked_through_once_for_each_prompt_that_begins_as_expected(
    setup: Setup, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, one, _ = setup
    known, real, lookups = prefixes(setup), Prefixes._longest, list[Job]()
    lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51))

    def counting(self: Prefixes, asked: Job) -> AnyPrefix | None:
        lookups.append(asked)
        return real(self, asked)

    monkeypatch.setattr(Prefixes, "_longest", counting)
    jobs = [job(one, *HEAD, k) for k in range(52, 82)]
    assert lengths(known, *jobs) == [40] * len(jobs)
    assert lookups == jobs


class Token(int):
    """A token that counts how often one is compared."""

    comparisons = 0

    def __eq__(self, other: object) -> bool:
        Token.comparisons += 1
        return int(self) == other

    __hash__ = int.__hash__


def test_a_batch_of_one_prompt_is_split_in_time_that_grows_with_its_jobs_alone(setup: Setup) -> None:
    _, one, _ = setup

    def comparisons(n_jobs: int) -> int:
        Token.comparisons = 0
        prefixes(setup).split([job(one, *map(Token, HEAD)) for _ in range(n_jobs)])
        return Token.comparisons

    assert 0 < comparisons(200) < 2.5 * comparisons(100)


@pytest.mark.parametrize("why", ["switched off", "kept whole"])
def test_nothing_is_remembered(setup: Setup, why: str) -> None:
    _, one, _ = setup
    model, _ = injected()
    if why == "kept whole":
        forbid_partial_runs(model, "a test")
    known = Prefixes(model, max_bytes=0 if why == "switched off" else 2**20, max_batch_tokens=4096)
    known.serve(one.reading)
    assert lengths(known, job(one, *HEAD, 50), job(one, *HEAD, 51)) == [0, 0]


def test_what_is_remembered_is_that_of_the_adapters_bank(setup: Setup) -> None:
    _, one, two = setup
    known = prefixes(setup)
    kept = [
        next(prefix for prefix in known.split([job(adapter, *HEAD, 50), job(adapter, *HEAD, 51)]) if prefix is not None)
        for adapter in (one, two)
    ]
    [first, second] = (prefix.memory(0, 4).layers[0][1] for prefix in kept)
    assert (first - second).abs().max() > torch.finfo(torch.float32).eps
