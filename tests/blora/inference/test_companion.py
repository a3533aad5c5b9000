"""A companion: what a linear head reads of it stands behind the base model's states, whatever is read beside it."""

import copy
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

from blora.base_model import BaseModel
from blora.config import CompanionConfig, HeadConfig, PromptConfig
from blora.errors import BaseModelError
from blora.inference import reading
from blora.inference.architecture import check_packing
from blora.inference.companion import with_companion
from blora.inference.packing import PackedRow, pack
from blora.inference.reading import read_prefix, read_rows
from blora.posterior.draws import NO_LORA
from tests.blora.inference.test_encoders import CONFIGS, LONGEST, N_LAYERS, encoder
from tests.heads import LABELS
from tests.scenarios import random_model, tiny_base, tiny_tokenizer

ALONE = HeadConfig(depths=(1, 2), n_states=64, n_directions=4, n_grams=8)
TEXTS = ("red", "is it blue, or is it green?", "why <s> not?", "no")
LONG = "a text of many words " * 6


def paired(name: str = "bert") -> BaseModel:
    return with_companion(check_packing(tiny_base()), check_packing(encoder(name)))


def of_both(base: BaseModel) -> HeadConfig:
    assert base.companion is not None
    own = CompanionConfig(model=base.companion.ref, depths=(2, N_LAYERS), n_states=64)
    return replace(ALONE, n_states=128, companion=own)


def rows_of(base: BaseModel, texts: tuple[str, ...] = TEXTS, template: str = "The text: {prompt}\n") -> list[PackedRow]:
    config = PromptConfig(choices=LABELS, readout="linear", template=template, choice_end="newline")
    return [
        pack(base.tokenizer, prompt=text, choices=LABELS, config=config, max_length=base.max_length) for text in texts
    ]


def plainly(base: BaseModel, tokens: list[int]) -> torch.Tensor:
    """Mean states of tokens at the two depths, of unit length, from the library's own pass over them alone."""
    assert base.companion is not None
    with torch.no_grad():
        found = base.companion.model(input_ids=torch.tensor([tokens]), output_hidden_states=True)
    means = torch.stack([found.hidden_states[2][0].mean(0), found.last_hidden_state[0].mean(0)])
    return normalize(means, dim=-1).flatten()


def letters(text: str) -> list[int]:
    """Tokens of a text, one a character, without control tokens."""
    tokens: list[int] = tiny_tokenizer(bos=False).convert_tokens_to_ids(list(text))
    return tokens


@pytest.mark.parametrize("name", ["bert", "modernbert"])
def test_its_states_of_the_text_alone_stand_behind_those_of_the_base_model(name: str) -> None:
    base = paired(name)
    rows = rows_of(base)
    both, alone = (read_rows(base.model, rows, config, NO_LORA) for config in (of_both(base), ALONE))
    assert torch.equal(both.states[:, :64], alone.states)
    assert both.prompt is not None
    assert torch.equal(both.prompt, alone.states)  # what tells how familiar a question is
    expected = torch.stack([plainly(base, [1, *letters(text)]) for text in TEXTS])  # <s> within a text is no token
    torch.testing.assert_close(both.states[:, 64:], expected, rtol=1e-4, atol=1e-5)


def test_many_texts_are_read_in_several_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    base = paired()
    rows = rows_of(base, (LONG[:50], *TEXTS))
    together = read_rows(base.model, rows, of_both(base), NO_LORA)
    monkeypatch.setattr(reading, "MOST_TOKENS", 30)
    torch.testing.assert_close(
        read_rows(base.model, rows, of_both(base), NO_LORA).states, together.states, rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("template", ["{prompt}", "{prompt}, said"])
def test_white_space_around_a_text_changes_nothing(template: str) -> None:
    base = paired()
    texts = ("red", "  red \n", f"{' ' * LONGEST}red")
    found = read_rows(base.model, rows_of(base, texts, template), of_both(base), NO_LORA).states
    torch.testing.assert_close(found, found[:1].expand(3, -1), rtol=1e-4, atol=1e-5)


def test_equal_texts_are_read_once_and_no_choices_of_a_questions_own(monkeypatch: pytest.MonkeyPatch) -> None:
    base = paired()
    assert base.companion is not None
    n_read: list[int] = []
    companion_rows = reading.companion_rows

    def counted(companion: BaseModel, texts: Sequence[str]) -> list[PackedRow]:
        n_read.append(len(texts))
        return companion_rows(companion, texts)

    monkeypatch.setattr(reading, "companion_rows", counted)
    rows = [*rows_of(base, ("red", "blue", "red")), *rows_of(base, ("red",), "Another: {prompt}")]
    found = read_rows(base.model, rows, of_both(base), NO_LORA).states[:, 64:]
    assert n_read == [2]
    assert torch.equal(found[0], found[2])
    assert torch.equal(found[0], found[3])
    scored = [replace(row, readout="scores") for row in rows]
    assert read_rows(base.model, scored, of_both(base), NO_LORA).states.shape == (4, 64)
    assert n_read == [2]


def test_of_a_text_beyond_its_positions_the_beginning_is_read_and_the_closing_token() -> None:
    encoding = check_packing(encoder())
    closing = replace(encoding, tokenizer=tiny_tokenizer(closes=True))
    base = with_companion(check_packing(tiny_base()), closing)
    assert base.max_length > len(LONG) > LONGEST
    found = read_rows(base.model, rows_of(base, (LONG,)), of_both(base), NO_LORA)
    expected = plainly(base, [1, *letters(LONG)[: LONGEST - 2], 2])
    torch.testing.assert_close(found.states[0, 64:], expected, rtol=1e-4, atol=1e-5)


def test_after_a_cached_beginning_the_whole_text_is_read() -> None:
    base = paired()
    rows, config = rows_of(base), of_both(base)
    prefix = read_prefix(base.model, rows[0], 8, config, NO_LORA)
    found = read_rows(base.model, rows, config, NO_LORA, prefix)
    torch.testing.assert_close(found.states, read_rows(base.model, rows, config, NO_LORA).states, rtol=1e-4, atol=1e-5)
    kept = prefix.take(rows[0])
    assert kept is not None
    torch.testing.assert_close(kept.states[0], found.states[0], rtol=1e-4, atol=1e-5)


def test_a_language_model_is_no_companion() -> None:
    with pytest.raises(
        BaseModelError, match=r"got tiny/llama beside tiny/llama, a language model, expected an encoder"
    ):
        with_companion(tiny_base(), check_packing(tiny_base()))


def test_a_companion_whose_tokenizer_leaves_an_empty_text_without_tokens_is_refused() -> None:
    bare = replace(check_packing(encoder()), tokenizer=tiny_tokenizer(bos=False))
    with pytest.raises(BaseModelError, match="whose tokenizer puts no token around a text"):
        with_companion(tiny_base(), bare)


@pytest.mark.parametrize("token", [" ", "<unk>"])
def test_a_companion_without_an_embedding_of_a_token_is_refused(token: str) -> None:
    """The last token of the vocabulary, or a control token that stands for what the tokenizer does not know."""
    tokenizer = tiny_tokenizer()
    model = random_model(copy.deepcopy(CONFIGS["bert"]))  # its config follows what is cut off
    known = tokenizer.convert_tokens_to_ids(token)
    model.resize_token_embeddings(max(known, 2))
    cut = replace(check_packing(encoder()), model=model, tokenizer=tokenizer)
    with pytest.raises(BaseModelError, match=rf"has the token .*, but only {max(known, 2)} embeddings"):
        with_companion(tiny_base(), cut)
