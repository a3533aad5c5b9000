"""A companion: an encoder, such as a sentence encoder, whose states a linear head reads beside the base model's.

Two models know more of a text than one. The companion reads the text itself, without the template around it, and of a
text that is longer than its positions only the beginning.
"""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from blora.base_model import BaseModel
from blora.errors import BaseModelError
from blora.inference.packing import PackedRow
from blora.inference.text import encode, guard

__all__ = ["MOST_TOKENS", "companion_of", "companion_rows", "with_companion"]

# Attribute of a model: its companion; missing where it has none.
_COMPANION = "_blora_companion"
# Most padded tokens in a pass of a companion, and of a text.
MOST_TOKENS = 4096


def with_companion(base: BaseModel, companion: BaseModel) -> BaseModel:
    """Return a base model with a companion, which all later readings of the model find.

    Raises:
        BaseModelError: if the companion is not an encoder, or some texts have no token in it, or one without an
            embedding.
    """
    model, tokenizer = companion.model, companion.tokenizer
    if not companion.is_encoder:
        raise BaseModelError(
            f"got {companion.ref.id} beside {base.ref.id}, a language model, expected an encoder after the +, such as "
            "sentence-transformers/all-MiniLM-L6-v2"
        )
    if not (frame := encode(tokenizer, "", special=True, whole=True)):
        raise BaseModelError(
            f"got {companion.ref.id} beside {base.ref.id}, whose tokenizer puts no token around a text, expected one "
            "that does, so that every text has a token; use another encoder"
        )
    largest, n_known = max(*frame, *_plain_ids(tokenizer)), len(next(model.get_input_embeddings().parameters()))
    if largest >= n_known:
        raise BaseModelError(
            f"got {companion.ref.id} beside {base.ref.id}, whose tokenizer has the token "
            f"{tokenizer.convert_ids_to_tokens(largest)!r}, number {largest}, but only {n_known} embeddings, expected "
            "one for each token; use the tokenizer that was published with the model"
        )
    setattr(base.model, _COMPANION, companion)
    return replace(base, companion=companion)


def companion_of(model: PreTrainedModel) -> BaseModel | None:
    """Return the companion of a model: see `with_companion`."""
    companion: BaseModel | None = getattr(model, _COMPANION, None)
    return companion


def companion_rows(companion: BaseModel, texts: Sequence[str]) -> list[PackedRow]:
    """Return texts as rows of a companion, as many tokens of each as it has positions, at most `MOST_TOKENS`."""
    return [PackedRow(_tokens(companion, text.strip()), (), "none", readout="linear") for text in texts]


def _tokens(companion: BaseModel, text: str) -> tuple[int, ...]:
    """Return the tokens of a text; those that are left out of a long text are the last before the closing one."""
    tokens = encode(companion.tokenizer, guard(companion.tokenizer, text), special=True, whole=True)
    most = min(companion.max_length, MOST_TOKENS)
    return tokens if len(tokens) <= most else (*tokens[: most - 1], tokens[-1])


def _plain_ids(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of all tokens that a user's text may have, in which control tokens are plain text."""
    unknown = tokenizer.unk_token_id
    ids = set(tokenizer.get_vocab().values()) - set(tokenizer.added_tokens_decoder)
    return ids if unknown is None else ids | {unknown}
