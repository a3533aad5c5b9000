"""A companion: an encoder, such as a sentence encoder, whose states a linear head reads beside the base model's.

Two models know more of a text than one. The companion reads the text itself, without the template around it, and of a
text that is longer than its positions only the beginning.
"""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedModel

from blora.base_model import BaseModel
from blora.errors import BaseModelError
from blora.inference.packing import PackedRow
from blora.inference.text import encode, guard

__all__ = ["companion_of", "companion_rows", "with_companion"]

# Attribute of a model: its companion; missing where it has none.
_COMPANION = "_blora_companion"


def with_companion(base: BaseModel, companion: BaseModel) -> BaseModel:
    """Return a base model with a companion, which all later readings of the model find.

    Raises:
        BaseModelError: if the companion is not an encoder, or its tokenizer leaves some texts without a token.
    """
    if not companion.is_encoder:
        raise BaseModelError(
            f"got {companion.ref.id} beside {base.ref.id}, a language model, expected an encoder after the +, such as "
            "sentence-transformers/all-MiniLM-L6-v2"
        )
    if not encode(companion.tokenizer, "", special=True, whole=True):
        raise BaseModelError(
            f"got {companion.ref.id} beside {base.ref.id}, whose tokenizer puts no token around a text, expected one "
            "that does, so that every text has a token; use another encoder"
        )
    setattr(base.model, _COMPANION, companion)
    return replace(base, companion=companion)


def companion_of(model: PreTrainedModel) -> BaseModel | None:
    """Return the companion of a model: see `with_companion`."""
    companion: BaseModel | None = getattr(model, _COMPANION, None)
    return companion


def companion_rows(companion: BaseModel, texts: Sequence[str]) -> list[PackedRow]:
    """Return texts as rows of a companion, as many tokens of each as it has positions."""
    return [PackedRow(_tokens(companion, text), (), "none", readout="linear") for text in texts]


def _tokens(companion: BaseModel, text: str) -> tuple[int, ...]:
    """Return the tokens of a text; those that are left out of a long text are the last before the closing one."""
    tokens, most = (
        encode(companion.tokenizer, guard(companion.tokenizer, text), special=True, whole=True),
        companion.max_length,
    )
    return tokens if len(tokens) <= most else (*tokens[: most - 1], tokens[-1])
