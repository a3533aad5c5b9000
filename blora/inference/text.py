"""Tokenising of texts that contain a user's text, without control tokens from the user.

A tokenizer reads the text of a control token, such as `<|im_end|>`, as the token itself, wherever it occurs. In a
template that is intended; in a user's text it would let the user end a turn of a chat and open one in another role. So
a user's text is guarded before it enters a template: markers replace the control tokens, and `encode` replaces each
marker by the tokens of the control token's plain text.
"""

import re
from collections.abc import Collection
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

__all__ = ["encode", "guard", "inside"]

# Private-use characters, which have no meaning in templates. In a user's text they are guarded like control tokens.
_OPEN, _CLOSE = "\ue000", "\ue001"
_MARKER = re.compile(f"{_OPEN}([0-9]+){_CLOSE}")


def guard(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """Return a user's text with markers in place of control tokens."""
    controls, pattern = _controls(tokenizer)
    return pattern.sub(lambda found: f"{_OPEN}{controls[found[0]]}{_CLOSE}", text)


def encode(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool, whole: bool = False) -> tuple[int, ...]:
    """Return the tokens of a text, with each marker replaced by the plain-text tokens of its control token.

    Args:
        tokenizer: the base model's tokenizer.
        text: a text with guarded parts.
        special: whether to add the special tokens that the tokenizer puts before a text, such as a beginning-of-text
            token.
        whole: whether nothing continues the text, so that the special tokens after it are added too. Choices continue
            a prompt.
    """
    opening, closing = _frame(tokenizer) if special else ((), ())
    closing = closing if whole else ()
    first, *rest = _MARKER.split(text)
    if not rest:
        return (*opening, *_tokens(tokenizer, text, special=False), *closing)
    # A control token cut in two is plain text, but its second half may contain another control token.
    halves = [(control[0], guard(tokenizer, control[1:])) for control in _controls(tokenizer)[0]]
    parts = [
        part
        for index, following in zip(rest[::2], rest[1::2], strict=True)
        for part in (*halves[int(index)], following)
    ]
    tokens_of = _inside_each(tokenizer, set(parts), "\n")
    tokens = (token for part in parts for token in tokens_of[part])
    return (*opening, *_tokens(tokenizer, first, special=False), *tokens, *closing)


def inside(tokenizer: PreTrainedTokenizerBase, text: str, anchor: str) -> tuple[int, ...]:
    """Return the tokens of a text as a part of another text, not as its beginning.

    Some tokenizers (Llama 2, Mistral 7B v0.1) add a space before every text. The text is therefore encoded
    after a short anchor, whose tokens are then cut off. A text whose first token would merge with the anchor is encoded
    alone.
    """
    opening = encode(tokenizer, anchor, special=False)
    tokens = encode(tokenizer, anchor + text, special=False)
    if tokens[: len(opening)] == opening:
        return tokens[len(opening) :]
    return encode(tokenizer, text, special=False)


def _inside_each(tokenizer: PreTrainedTokenizerBase, texts: Collection[str], anchor: str) -> dict[str, tuple[int, ...]]:
    """Return `inside` of each text, in one call of the tokenizer, because a text may hold 300,000 control tokens."""
    plain = [text for text in texts if _OPEN not in text]
    opening = list(_tokens(tokenizer, anchor, special=False))
    anchored = tokenizer(
        [anchor + text for text in plain], add_special_tokens=False, return_attention_mask=False, verbose=False
    )["input_ids"]
    found = {
        text: tuple(tokens[len(opening) :])
        for text, tokens in zip(plain, anchored, strict=True)
        if tokens[: len(opening)] == opening
    }
    return found | {text: inside(tokenizer, text, anchor) for text in texts if text not in found}


@lru_cache(maxsize=8)  # a tokenizer may have thousands of control tokens
def _controls(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, int], re.Pattern[str]]:
    """Return the number of each text to guard, and a pattern that finds any of them."""
    added = (str(token) for token in tokenizer.added_tokens_decoder.values())
    # Some tokenizers have runs of white space among their added tokens; these are not control tokens.
    texts = dict.fromkeys([_OPEN, *(text for text in added if text.strip())])
    longest_first = sorted(texts, key=len, reverse=True)
    return {text: i for i, text in enumerate(texts)}, re.compile("|".join(map(re.escape, longest_first)))


@lru_cache(maxsize=8)  # called for every prompt
def _frame(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that the tokenizer puts before and after every text."""
    bare, framed = _tokens(tokenizer, "a", special=False), _tokens(tokenizer, "a", special=True)
    start = next(i for i in range(len(framed)) if framed[i : i + len(bare)] == bare)
    return framed[:start], framed[start + len(bare) :]


def _tokens(tokenizer: PreTrainedTokenizerBase, text: str, *, special: bool) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=special, verbose=False)["input_ids"])
