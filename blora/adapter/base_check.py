"""The check that a base model is the one that an adapter was trained on: its weights, and how it reads text."""

import re

from blora.base_model import BaseModel
from blora.config import AdapterConfig, BaseModelRef
from blora.errors import AdapterError
from blora.posterior.inject import check_modules

__all__ = ["check_base"]

# A git commit, or the digest of a file or of the tensors in files: equal hashes mean equal weights.
CONTENT_HASH = re.compile("[0-9a-f]{40}|sha256:[0-9a-f]{64}")


def check_base(config: AdapterConfig, base: BaseModel) -> None:
    """Check that an adapter was trained on a base model.

    Raises:
        AdapterError: for other weights, another tokenizer, chat template or config, or modules that the model lacks; or
            if the base model has not the companion that the adapter reads.
    """
    _check_model(config.base_model, base, "base model")
    check_modules(base.model, config.modules)
    if config.companion is None:
        return
    if base.companion is None:
        raise AdapterError(
            f"got base model {base.ref.id} alone, expected the companion {config.companion.id} beside it, which the "
            f"adapter reads too; load both, joined by a +: --base-model MODEL+{config.companion.id}"
        )
    _check_model(config.companion, base.companion, "companion")


def _check_model(wanted: BaseModelRef, found: BaseModel, what: str) -> None:
    """Raise an error if a model is not the one that a reference names, or reads text otherwise."""
    ref, revision = found.ref, wanted.revision or "unknown"
    if not _same_weights(wanted, ref):
        raise AdapterError(
            f"got {what} {ref.id} ({ref.fingerprint[:19]}), expected {wanted.id} ({wanted.fingerprint[:19]}), which "
            f"the adapter was trained on; load that {what}, revision {revision}; if only transformers was upgraded "
            "since, install the release that the adapter's settings name"
        )
    if wanted.reading != ref.reading:
        raise AdapterError(
            f"got {what} {ref.id} whose tokenizer, chat template or config.json has changed, expected those that the "
            f"adapter was trained with; load revision {revision} of {wanted.id}, or train again; if only transformers "
            "was upgraded since, install the release that the adapter's settings name"
        )


def _same_weights(wanted: BaseModelRef, found: BaseModelRef) -> bool:
    """Return whether two references name the same weights.

    A release of transformers may rename or fuse parameters, which changes the fingerprint of a loaded model but not
    the files. The revision of a folder is therefore the digest of its files, under the names in these files.
    """
    if wanted.fingerprint in (found.fingerprint, found.revision):
        return True
    return wanted.revision == found.revision and CONTENT_HASH.fullmatch(wanted.revision or "") is not None
