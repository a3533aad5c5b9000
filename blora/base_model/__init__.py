"""The frozen base model: its loading, its identity, and the device and precision that it computes in."""

from blora.base_model.devices import native_dtypes, pick_device
from blora.base_model.identity import model_fingerprint, reading_digest
from blora.base_model.loading import EMBEDDED, EMBEDDED_HUB_ID, EMBEDDED_ID, BaseModel, load_base_model

__all__ = [
    "EMBEDDED",
    "EMBEDDED_HUB_ID",
    "EMBEDDED_ID",
    "BaseModel",
    "load_base_model",
    "model_fingerprint",
    "native_dtypes",
    "pick_device",
    "reading_digest",
]
