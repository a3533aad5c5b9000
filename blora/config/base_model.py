"""The reference by which an adapter knows the models that it was trained on."""

from dataclasses import dataclass
from typing import ClassVar

from pydantic import ConfigDict

__all__ = ["BaseModelRef"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BaseModelRef:
    """Reference to a base model, or to the companion beside it.

    Attributes:
        id: hub id, or the name of the folder or embedded model.
        revision: commit or content hash of the loaded weights, None if unknown.
        fingerprint: digest of the parameters' names, shapes and sampled values. A base model matches if its
            fingerprint is equal, or its revision is the same content hash.
        reading: digest of the tokenizer, the chat template and the config's settings, which must be equal too.
    """

    __pydantic_config__: ClassVar[ConfigDict] = ConfigDict(extra="forbid")

    id: str
    revision: str | None
    fingerprint: str
    reading: str
