"""Bayesian-LoRA adapters for language models that abstain when they are uncertain.

    model = blora.load("adapters/triage")      # ask, calibrate, evaluate, export: see `blora.Model`
    model = blora.train(rows, output="adapters/triage")
    model = blora.bayesianize("loras/triage", rows, output="adapters/triage")

`blora.posterior` is the distribution over weights, `blora.inference` the computation of an answer, and `blora.decision`
calibration and abstention. Heavy modules are imported on first use.
"""

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from blora.front_door import Model, bayesianize, load, train

__all__ = ["Model", "__version__", "bayesianize", "load", "train"]

__version__ = version("blora")

LAZY = ("Model", "bayesianize", "load", "train")


def __getattr__(name: str) -> Any:
    """Return a public name and import its module, and with it torch, on first use."""
    if name not in LAZY:
        raise AttributeError(f"module 'blora' has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module("blora.front_door"), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *LAZY})
