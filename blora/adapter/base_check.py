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
        AdapterError: for other weights, another tokenizer, chat template or config, or modules that the model lacks.
    """
    wanted = config.base_model
    revision = wanted.revision or "unknown"
    if not _same_weights(wanted, base.ref):
        raise AdapterError(
            f"got base model {base.ref.id} ({base.ref.fingerprint[:19]}), expected {wanted.id} "
            f"({wanted.fingerprint[:19]}), which the adapter was trained on; load that base model, revision "
            f"{revision}; if only transformers was upgraded since, install the release that the adapter's settings name"
        )
    if wanted.reading != base.ref.reading:
        raise AdapterError(
            f"got base model {base.ref.id} whose tokenizer, chat template or config.json has changed, expected those "
            f"that the adapter was trained with; load revision {revision} of {wanted.id}, or train again; if only "
            "transformers was upgraded since, install the release that the adapter's settings name"
        )
    check_modules(base.model, config.modules)


def _same_weights(wanted: BaseModelRef, found: BaseModelRef) -> bool:
    """Return whether two references name the same weights.

    A release of transformers may rename or fuse parameters, which changes the fingerprint of a loaded model but not
    the files. The revision of a folder is therefore the digest of its files, under the names in these files.
    """
    if wanted.fingerprint in (found.fingerprint, found.revision):
        return True
    return wanted.revision == found.revision and CONTENT_HASH.fullmatch(wanted.revision or "") is not None
