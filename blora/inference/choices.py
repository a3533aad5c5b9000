"""Choices as tokens, and the token that ends each of them."""

from collections.abc import Sequence
from functools import lru_cache

from transformers import PreTrainedTokenizerBase

from blora.config import ChoiceEnd
from blora.errors import PromptError
from blora.inference.text import inside

__all__ = ["check_choices", "check_tokens", "encode_choices", "end_token", "ended"]


def check_choices(choices: Sequence[str]) -> None:
    """Raise an error if choices, without white space at their ends, are invalid.

    Raises:
        PromptError: if there are fewer than two, one is empty, or two are the same.
    """
    if len(choices) < 2:
        raise PromptError(f"got {'one choice' if choices else 'no choices'}, expected at least 2", param="choices")
    if not all(choices):
        raise PromptError("got an empty choice, expected some text", param="choices")
    if len(set(choices)) < len(choices):
        raise PromptError(
            "got the same choice twice (white space at the ends does not count), expected all different",
            param="choices",
        )


def encode_choices(
    tokenizer: PreTrainedTokenizerBase, glue: str, answers: Sequence[str]
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each answer as they stand inside a text, not as they open one."""
    anchor = "a" if glue else "\n"  # neither anchor merges with the following text
    return tuple(inside(tokenizer, glue + answer, anchor) for answer in answers)


def check_tokens(choices: Sequence[str], continuations: Sequence[tuple[int, ...]]) -> None:
    """Raise an error if a choice has no tokens, or the same tokens as another, so that no model can tell them apart.

    Args:
        choices: the choices.
        continuations: the tokens by which each choice is scored; empty if a linear head scores the choices.

    Raises:
        PromptError: naming the choices.
    """
    seen: dict[tuple[int, ...], str] = {}
    for choice, tokens in zip(choices, continuations, strict=False):
        if not tokens:
            raise PromptError(f"got choice {choice!r}, which has no tokens", param="choices")
        if tokens in seen:
            raise PromptError(
                f"got choices {seen[tokens]!a} and {choice!a}, which are the same tokens to the base model, expected "
                "choices that it can tell apart; rename or drop one of them",
                param="choices",
            )
        seen[tokens] = choice


@lru_cache(maxsize=8)  # called for every question
def end_token(tokenizer: PreTrainedTokenizerBase, end: ChoiceEnd) -> int:
    """Return the id of the token that ends every choice.

    Raises:
        PromptError: if the tokenizer has no such token.
    """
    if end == "eos":
        if tokenizer.eos_token_id is None:
            raise PromptError(
                "got a tokenizer without an end-of-sequence token; use --choice-end newline", param="choices"
            )
        return int(tokenizer.eos_token_id)
    [tokens] = encode_choices(tokenizer, " ", ["a\n"])
    [before] = encode_choices(tokenizer, " ", ["a"])
    if len(tokens) != len(before) + 1 or tokens[: len(before)] != before:
        raise PromptError(
            "got a tokenizer in which a line break is not one token; use --choice-end eos", param="choices"
        )
    return tokens[-1]


def ended(
    tokenizer: PreTrainedTokenizerBase,
    choices: Sequence[str],
    continuations: tuple[tuple[int, ...], ...],
    end: ChoiceEnd,
) -> tuple[tuple[int, ...], ...]:
    """Return the tokens of each choice with the end token, so that no choice is the beginning of another."""
    token = end_token(tokenizer, end)
    for choice, tokens in zip(choices, continuations, strict=True):
        if token in tokens:
            raise PromptError(
                f"got choice {choice[:40]!r} with a line break, which ends a choice of this adapter; expected one "
                "line, or an adapter trained with --choice-end eos",
                param="choices",
            )
    return tuple((*tokens, token) for tokens in continuations)
