"""What a head reads in one packed pass, against plain forward passes of each text alone."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations

import pytest
import torch
from torch import Tensor

from blora.base_model import BaseModel
from blora.config import HeadConfig, PromptConfig
from blora.inference.branches import Branches, score_all
from blora.inference.checkpoints import checkpoints
from blora.inference.fork import first_layer
from blora.inference.grams import MOST_PER_TOKEN, grams_of
from blora.inference.packing import PackedRow, States, pack
from blora.inference.prefix import MIN_PREFIX, HeadPrefix, Prefix
from blora.inference.reading import head_log_probs, read_prefix, read_rows, trunk_of
from blora.posterior.decision_head import Features, HeadDraws
from blora.posterior.draws import NO_LORA, Draws
from blora.posterior.inject import inject
from blora.posterior.noise import generator_of, standard_normal
from blora.training.lora.trunk import with_states
from blora.training.rows.packed import LabelledRow
from tests.heads import LABELS, head_of
from tests.scenarios import DECODERS, adapted_modules, log_prob_alone, random_draws, tiny_base

TEXTS = ("Is it red?", "Why", "Was the long way home blue or green, and who says so?")
DEPTHS = (1, 2)


def prompt_of(readout: str, **more: object) -> PromptConfig:
    fixed = LABELS if readout == "linear" else None
    return PromptConfig(
        template="Q: {prompt}\nA:",
        choices=fixed,
        choice_end="newline",
        readout=readout,
        **more,  # type: ignore[arg-type]
    )


def packed(base: BaseModel, text: str, readout: str, choices: tuple[str, ...] = LABELS) -> PackedRow:
    return pack(base.tokenizer, prompt=text, choices=choices, config=prompt_of(readout), max_length=base.max_length)


def config_of(base: BaseModel, readout: str) -> HeadConfig:
    n_states = len(DEPTHS) * base.model.config.get_text_config().hidden_size
    more = {"n_grams": 64} if readout == "linear" else {"n_products": (4, 3)}
    return HeadConfig(depths=DEPTHS, n_states=n_states, n_directions=8, **more)  # type: ignore[arg-type]


def draws_of(base: BaseModel, readout: str, lora: Draws = NO_LORA) -> HeadDraws:
    head = head_of(config_of(base, readout), len(LABELS) if readout == "linear" else 1)
    return head.sample_from(standard_normal(4, generator_of(0)), lora)


@torch.no_grad()
def states_alone(base: BaseModel, ids: tuple[int, ...]) -> Tensor:
    """(T, F) hidden states of one text, by an ordinary forward pass."""
    found = base.model(input_ids=torch.tensor([ids]), output_hidden_states=True).hidden_states
    return torch.cat([found[depth][0].float() for depth in DEPTHS], -1)


@pytest.mark.parametrize("architecture", [name for name in DECODERS if name != "opt"])
def test_a_linear_head_reads_the_mean_over_the_prompts_tokens(architecture: str) -> None:
    base = tiny_base(architecture)
    rows = [packed(base, text, "linear") for text in TEXTS]
    assert all(row.n_tokens == row.prompt_tokens for row in rows)  # no choice is read
    found = read_rows(base.model, rows, config_of(base, "linear"), NO_LORA)
    for row, states in zip(rows, found.states, strict=True):
        torch.testing.assert_close(states, states_alone(base, row.prompt).mean(0), rtol=1e-3, atol=1e-4)
    assert found.counts.shape == (len(TEXTS), 0)
    for grams, text in zip(found.grams, TEXTS, strict=True):
        assert torch.equal(grams, grams_of(text))


def test_characters_that_are_no_tokens_cost_next_to_nothing_and_each_text_can_be_interrupted() -> None:
    base = tiny_base("llama")
    row = packed(base, TEXTS[0], "linear")
    rows = [replace(row, text=f"{k} \a" * 100_000) for k in (0, 1, 0)]
    called: list[None] = []
    with checkpoints(lambda: called.append(None)):
        found = read_rows(base.model, rows, config_of(base, "linear"), NO_LORA)
        n_called = len(called)
        read_rows(base.model, rows[:1], config_of(base, "linear"), NO_LORA)
    assert n_called - 1 == len(called) - n_called  # two different texts, then one
    for one, grams in zip(rows, found.grams, strict=True):
        assert torch.equal(grams, grams_of(one.text[: MOST_PER_TOKEN * one.prompt_tokens]))


@pytest.mark.parametrize("space", ["\n" * 100_000, "\u3000" * 100_000])
def test_white_space_takes_no_n_grams_away(space: str) -> None:
    base = tiny_base("llama")
    row = packed(base, TEXTS[0], "linear")
    rows = [
        replace(row, text=text) for text in (f"{space}{row.text}", row.text.replace(" ", space), f"{row.text}{space}")
    ]
    for grams in read_rows(base.model, rows, config_of(base, "linear"), NO_LORA).grams:
        assert torch.equal(grams, grams_of(row.text))


@pytest.mark.parametrize("architecture", ["llama", "qwen3", "gpt2", "gemma2"])
def test_a_pointer_head_reads_each_choice_as_if_it_were_alone(architecture: str) -> None:
    base = tiny_base(architecture)
    rows = [packed(base, text, "pointer", ("a", "a longer one", "b c")) for text in TEXTS]
    found = read_rows(base.model, rows, config_of(base, "pointer"), NO_LORA)
    for b, row in enumerate(rows):
        for c, tokens in enumerate(row.continuations):
            own = states_alone(base, (*row.prompt, *tokens))[row.prompt_tokens : -1]
            torch.testing.assert_close(found.states[b, c], own.mean(0), rtol=1e-3, atol=1e-4)
            total = log_prob_alone(base.model, row.prompt, tokens)
            expected = torch.stack([total, total / len(tokens), torch.tensor(len(tokens)).double().log()]).float()
            torch.testing.assert_close(found.counts[b, c], expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_states_after_a_prefix_are_those_of_the_whole_prompt(readout: str) -> None:
    base = tiny_base()
    shared = "x" * MIN_PREFIX
    rows = [packed(base, f"{shared} {text}", readout) for text in TEXTS]
    draws = draws_of(base, readout)
    prefix = read_prefix(base.model, rows[0], MIN_PREFIX + 4, draws.head.config, NO_LORA)
    assert all(row.prompt[: len(prefix.tokens)] == prefix.tokens for row in rows)
    whole, after = (read_rows(base.model, rows, draws.head.config, NO_LORA, known) for known in (None, prefix))
    torch.testing.assert_close(after.states, whole.states, rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(after.counts, whole.counts, rtol=1e-3, atol=1e-3)
    assert prefix.has_read(rows[0])
    assert not prefix.has_read(rows[1])
    assert prefix.take(rows[1]) is None
    first, alone = prefix.take(rows[0]), read_rows(base.model, rows[:1], draws.head.config, NO_LORA)
    assert first is not None
    torch.testing.assert_close((first.states, first.counts, first.prompt), (alone.states, alone.counts, alone.prompt))
    assert not prefix.has_read(rows[0])
    assert prefix.take(rows[0]) is None


@pytest.mark.parametrize("depth", [0, 1])
def test_layers_above_a_head_run_once_a_row_after_its_prefix_is_scored(
    depth: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = tiny_base()
    rows = [packed(base, f"{'x' * MIN_PREFIX} {text}", "linear") for text in TEXTS]
    config = config_of(base, "linear")
    lower = replace(config, depths=(depth,), n_states=config.n_states // 2)
    prefix = read_prefix(base.model, rows[0], MIN_PREFIX + 4, lower, NO_LORA)
    whole = read_prefix(base.model, rows[0], MIN_PREFIX + 4, config, NO_LORA)
    assert ([*prefix.below.layers], [*whole.below.layers]) == ([0], [0, 1])
    n_bytes, scored = prefix.n_bytes(4), [packed(base, row.text, "scores") for row in rows]

    def score(*known: HeadPrefix) -> Tensor:
        return Branches(base.model, scored, [NO_LORA], [0] * len(rows), *known).score(range(len(rows)), 0, 1)

    torch.testing.assert_close(score(prefix), score(), rtol=1e-3, atol=1e-4)
    assert prefix.n_bytes(4) == n_bytes
    monkeypatch.delattr(Prefix, "__init__")  # runs no more
    torch.testing.assert_close(score(prefix), score(whole), rtol=1e-3, atol=1e-4)
    found, alone = (read_rows(base.model, rows, lower, NO_LORA, known).states for known in (prefix, None))
    torch.testing.assert_close(found, alone, rtol=1e-3, atol=1e-4)


def test_the_lora_below_a_head_changes_what_is_read() -> None:
    base = tiny_base()
    modules = adapted_modules(base.model)
    inject(base.model, modules)
    rows = [packed(base, text, "linear") for text in TEXTS]
    config = config_of(base, "linear")
    plain = read_rows(base.model, rows, config, NO_LORA)
    moved = read_rows(base.model, rows, config, random_draws(modules, 1))
    assert (plain.states - moved.states).abs().max() > 0.1
    torch.testing.assert_close(read_rows(base.model, rows, config, NO_LORA).states, plain.states)


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_known_states_are_continued_unless_the_lora_changes_them(readout: str) -> None:
    base = tiny_base()
    modules = adapted_modules(base.model)
    inject(base.model, modules)
    rows = [packed(base, text, readout) for text in TEXTS]
    config = config_of(base, readout)
    known = [row.row for row in with_states(base.model, [LabelledRow(row, 0) for row in rows], 1)]
    every = random_draws(modules, 1)
    above = random_draws({name: shape for name, shape in modules.items() if first_layer([name]) == 1}, 1)
    assert (trunk_of(config, NO_LORA), trunk_of(config, every), trunk_of(config, above)) == (1, 0, 1)
    for lora in (NO_LORA, every, above):
        whole, continued = (read_rows(base.model, part, config, lora) for part in (rows, known))
        torch.testing.assert_close(continued.states, whole.states, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(continued.counts, whole.counts, rtol=1e-3, atol=1e-3)
    wrong = [replace(row, states=States(1, row.states.values + 1)) for row in known if row.states is not None]
    assert (read_rows(base.model, wrong, config, above).states - whole.states).abs().max() > 0.1
    torch.testing.assert_close(
        read_rows(base.model, wrong, config, every).states, read_rows(base.model, rows, config, every).states
    )


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_the_order_of_the_choices_does_not_matter(readout: str) -> None:
    base = tiny_base()
    draws = draws_of(base, readout)
    usual = score_all(base.model, [packed(base, TEXTS[0], readout)], draws, max_batch_tokens=512)[:, 0]
    for order in permutations(range(3)):
        row = packed(base, TEXTS[0], readout, tuple(LABELS[k] for k in order))
        found = score_all(base.model, [row], draws, max_batch_tokens=512)[:, 0]
        torch.testing.assert_close(found, usual[:, list(order)], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_a_row_scores_the_same_in_a_batch_and_alone(readout: str) -> None:
    base = tiny_base()
    draws = draws_of(base, readout)
    rows = [packed(base, text, readout, LABELS[: 2 + k % 2]) for k, text in enumerate(TEXTS)]
    together = score_all(base.model, rows, draws, max_batch_tokens=512)
    for b, row in enumerate(rows):
        alone = score_all(base.model, [row], draws, max_batch_tokens=512)[:, 0]
        torch.testing.assert_close(together[:, b, : row.n_choices], alone, rtol=1e-4, atol=1e-4)
        assert together[:, b, row.n_choices :].isneginf().all()


def test_the_choices_that_tell_how_familiar_a_question_is_are_its_own_in_a_batch_too() -> None:
    base = tiny_base()
    config = config_of(base, "pointer")
    rows = [packed(base, text, "pointer", LABELS[: 2 + k % 2]) for k, text in enumerate(TEXTS)]
    together = read_rows(base.model, rows, config, NO_LORA).choices()
    assert together is not None
    states, owner = together
    for b, row in enumerate(rows):
        alone = read_rows(base.model, [row], config, NO_LORA).choices()
        assert alone is not None
        torch.testing.assert_close(states[owner == b], alone[0], rtol=1e-4, atol=1e-4)


def test_some_of_the_fixed_choices_share_the_heads_probability() -> None:
    base = tiny_base()
    draws = draws_of(base, "linear")
    features = read_rows(base.model, [packed(base, TEXTS[0], "linear")], draws.head.config, NO_LORA)
    everything = head_log_probs(draws, [packed(base, TEXTS[0], "linear")], features)
    two = head_log_probs(draws, [packed(base, TEXTS[0], "linear", ("maybe", "no"))], features)
    torch.testing.assert_close(two, everything[..., [2, 0]].log_softmax(-1))


def test_choices_that_a_linear_head_does_not_know_are_scored_by_the_language_model() -> None:
    base = tiny_base()
    draws = draws_of(base, "linear")
    known, other = (packed(base, TEXTS[0], "linear", choices) for choices in (LABELS, ("red", "yes")))
    assert (known.readout, other.readout, other.outputs) == ("linear", "scores", ())
    found = score_all(base.model, [other, known], draws, max_batch_tokens=512)
    expected = score_all(base.model, [replace(other, normalization="question")], None, max_batch_tokens=512)
    torch.testing.assert_close(found[:, 0, :2], expected[:, 0].expand(4, -1), rtol=1e-4, atol=1e-4)
    assert (found[0, 1] - found[1, 1]).abs().max() > 1e-3  # draws of the head differ


def test_rows_that_the_language_model_scores_are_read_in_batches_too(monkeypatch: pytest.MonkeyPatch) -> None:
    base = tiny_base()
    draws = draws_of(base, "linear")
    rows = [packed(base, f"{text} {k}", "linear", ("left", "right")) for k in range(20) for text in TEXTS]
    assert {row.readout for row in rows} == {"scores"}
    sizes, seen = list[int](), dict[int, Tensor]()

    def counted(model: object, some: Sequence[PackedRow], *rest: object) -> Features:
        sizes.append(len(some) * max(row.n_tokens for row in some))
        return read_rows(model, some, *rest)  # type: ignore[arg-type]

    def read(places: Sequence[int], features: Features) -> None:
        assert features.prompt is not None
        seen.update(zip(places, features.prompt, strict=True))

    monkeypatch.setattr("blora.inference.branches.read_rows", counted)
    score_all(base.model, rows, draws, max_batch_tokens=512, read=read)
    assert max(sizes) <= 512
    for place, row in enumerate(rows):
        alone = read_rows(base.model, [row], draws.head.config, NO_LORA).prompt
        assert alone is not None
        torch.testing.assert_close(seen[place], alone[0], rtol=1e-4, atol=1e-4)


def test_a_letter_is_never_read_by_a_head() -> None:
    base = tiny_base()
    row = pack(
        base.tokenizer,
        prompt=TEXTS[0],
        choices=LABELS,
        config=prompt_of("linear"),
        scoring="label",
        max_length=base.max_length,
    )
    assert (row.readout, row.scoring) == ("scores", "label")


def test_draws_need_no_further_pass() -> None:
    base = tiny_base()
    passes = []
    base.model.register_forward_pre_hook(lambda *_: passes.append(1))
    inner = base.model.model.layers[0]
    inner.register_forward_pre_hook(lambda *_: passes.append(1))
    draws = draws_of(base, "linear")
    score_all(base.model, [packed(base, TEXTS[0], "linear")], draws, max_batch_tokens=512)
    once = len(passes)
    more = draws.head.sample_from(standard_normal(64, generator_of(0)), NO_LORA)
    score_all(base.model, [packed(base, TEXTS[0], "linear")], more, max_batch_tokens=512)
    assert len(passes) == 2 * once > 0
