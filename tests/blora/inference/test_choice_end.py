"""Choices that other choices begin with: with an end either can win, without one the longer never does."""

import copy
import random
from typing import get_args

import pytest
import torch
from tokenizers import normalizers
from transformers import PreTrainedTokenizerBase

from blora.base_model import BaseModel
from blora.config import ChoiceEnd, PromptConfig
from blora.errors import PromptError
from blora.inference.branches import score_all
from blora.inference.choices import end_token
from blora.inference.packing import PackedRow, pack
from tests.scenarios import MAX_LENGTH, spell, tiny_tokenizer

WORDS = (
    *("bug", "report", "refund", "request", "data", "export", "New", "York", "card", "payment", "lost", "stolen"),
    *("a", "no", "yes", "maybe", "spam", "urgent", "low", "risk", "contract", "law", "pain", "chest", "acute", "café"),
)


def make(
    *choices: str, end: str = "newline", tokenizer: PreTrainedTokenizerBase | None = None, **settings: object
) -> PackedRow:
    config = PromptConfig(choice_end=end, **settings)  # type: ignore[arg-type]
    tokenizer = tokenizer or tiny_tokenizer()
    return pack(tokenizer, prompt="Is it?", choices=choices, config=config, max_length=MAX_LENGTH)


def test_an_end_stands_after_the_last_token_of_every_choice() -> None:
    assert [spell(tokens) for tokens in make("yes", "yes sir").continuations] == [" yes\n", " yes sir\n"]


def test_without_an_end_rows_are_as_they_were() -> None:
    assert [spell(tokens) for tokens in make("yes", "no", end="none").continuations] == [" yes", " no"]


def test_normalized_or_not_a_longer_choice_is_shadowed_where_its_length_counts_nothing() -> None:
    found = {power: make("yes", "yes sir", end="none", normalization="choice", length_power=power) for power in (0, 1)}
    assert found[0].shadowed == ("yes sir", "yes")
    assert found[1].shadowed is None


def test_labels_are_single_letters_without_an_end() -> None:
    assert [spell(tokens) for tokens in make("yes", "yes sir", scoring="label").continuations] == [" A", " B"]


def test_the_end_of_sequence_ends_choices_of_several_lines() -> None:
    tokenizer = copy.deepcopy(tiny_tokenizer())
    tokenizer.eos_token = "<unk>"
    config = PromptConfig(choice_end="eos")
    row = pack(tokenizer, prompt="Is it?", choices=["a", "a\nb"], config=config, max_length=MAX_LENGTH)
    assert [tokens[-1] for tokens in row.continuations] == [tokenizer.eos_token_id] * 2
    assert row.shadowed is None


def test_a_line_break_inside_a_choice_is_refused_where_it_would_end_the_choice() -> None:
    with pytest.raises(PromptError, match="with a line break, which ends a choice") as info:
        make("a", "a\nb")
    assert info.value.param == "choices"


def test_a_tokenizer_without_an_end_of_sequence_is_refused() -> None:
    with pytest.raises(PromptError, match="without an end-of-sequence token"):
        end_token(tiny_tokenizer(), "eos")


def test_white_space_at_the_ends_of_a_choice_does_not_count() -> None:
    row, plain = make(" yes", "no\n"), make("yes", "no")
    assert row.continuations == plain.continuations
    assert row.choices == ("yes", "no")
    with pytest.raises(PromptError, match="same choice twice"):
        make("yes", " yes")


@pytest.mark.parametrize("readout", ["scores", "pointer"])
def test_choices_that_a_tokenizer_cannot_tell_apart_are_refused_where_their_texts_are_scored(readout: str) -> None:
    composing = copy.deepcopy(tiny_tokenizer())
    composing.backend_tokenizer.normalizer = normalizers.NFC()  # as in the tokenizers of Qwen
    choices = ("x\u00e9", "office", "xe\u0301")
    with pytest.raises(
        PromptError, match=r"got choices 'x\\xe9' and 'xe\\u0301', .* expected choices .*; rename"
    ) as info:
        make(*choices, readout=readout, tokenizer=composing)
    assert info.value.param == "choices"
    assert make(*choices, readout=readout).n_choices == 3  # a tokenizer that tells them apart
    assert make(*choices, scoring="label", tokenizer=composing).n_choices == 3
    small = copy.deepcopy(tiny_tokenizer())
    small.backend_tokenizer.normalizer = normalizers.Lowercase()
    fixed = ("XE", "office", "xe")  # choices that look the same cannot be fixed
    with pytest.raises(PromptError, match="got choices 'XE' and 'xe', .* expected choices .*; rename"):
        make(*fixed, readout=readout, tokenizer=small)
    assert make(*fixed, readout="linear", choices=fixed, tokenizer=small).n_choices == 3


@pytest.mark.parametrize(
    ("choices", "end", "normalization", "expected"),
    [
        (("bug", "bug report"), "none", "question", ("bug report", "bug")),
        (("bug report", "crash", "bug"), "none", "none", ("bug report", "bug")),
        (("bug report", "bug"), "none", "choice", None),
        (("bug report", "bug"), "newline", "question", None),
        (("bug report", "data export"), "none", "question", None),
    ],
)
def test_a_choice_that_another_one_begins_is_named(
    choices: tuple[str, ...], end: str, normalization: str, expected: tuple[str, str] | None
) -> None:
    assert make(*choices, end=end, normalization=normalization).shadowed == expected


def label_sets(n: int) -> list[tuple[str, str]]:
    """Pairs of a choice and a longer one that begins with it."""
    picked = random.Random(0)
    pairs = []
    for _ in range(n):
        words = picked.sample(WORDS, picked.randint(2, 4))
        cut = picked.randint(1, len(words) - 1)
        pairs.append((" ".join(words[:cut]), " ".join(words)))
    return pairs


@pytest.mark.model
@pytest.mark.parametrize("end", get_args(ChoiceEnd))
def test_either_of_two_choices_wins_where_the_prompt_says_so(smollm2: BaseModel, end: ChoiceEnd) -> None:
    """A prompt that repeats one of them makes a language model go on with that one, whichever it is."""
    pairs = label_sets(30)
    stop = str(smollm2.tokenizer.eos_token) if end == "eos" else "\n"
    rows = [
        pack(
            smollm2.tokenizer,
            prompt="Labels:",
            choices=pair,
            config=PromptConfig(template="{prompt}" + f"{stop}Label: {said}" * 3 + f"{stop}Label:", choice_end=end),
            max_length=smollm2.max_length,
        )
        for pair in pairs
        for said in pair
    ]
    with torch.inference_mode():
        scores = score_all(smollm2.model, rows, None, max_batch_tokens=4096)[0]
    right = scores.argmax(-1).view(-1, 2) == torch.tensor([0, 1])
    shorter, longer = right.float().mean(0).tolist()
    assert shorter >= 0.95
    assert longer == 0 if end == "none" else longer >= 0.95
