"""An adapter as a folder on disk: its files, and how it is opened and exported."""

from blora.adapter.folder import (
    CARD_FILE,
    OWN_FILES,
    Adapter,
    adapter_bytes,
    adapter_digest,
    attach,
    check_output,
    load_adapter,
    new_adapter,
    read_config,
    save_adapter,
)
from blora.adapter.presence import is_adapter

__all__ = [
    "CARD_FILE",
    "OWN_FILES",
    "Adapter",
    "adapter_bytes",
    "adapter_digest",
    "attach",
    "check_output",
    "is_adapter",
    "load_adapter",
    "new_adapter",
    "read_config",
    "save_adapter",
]
