"""Bayesian-LoRA adapters for language models that know when they do not know.

Three wings: `blora.posterior` (what the weights are), `blora.inference` (how an answer is computed) and
`blora.decision` (what the numbers mean). Nothing heavy is imported until it is used.
"""

from importlib.metadata import version

__all__ = ["__version__"]

__version__ = version("blora")
