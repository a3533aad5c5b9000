"""Which processors a test runs as."""

import pytest

from benchmarks.processors.variants import AS_IT_IS, VARIANTS, Variant

__all__ = ["NOISY", "PRETENDED", "each"]

PRETENDED = [v for v in VARIANTS if v.seed is None and v.name != AS_IT_IS]
NOISY = [v for v in VARIANTS if v.seed is not None]


def each(variants: list[Variant]) -> pytest.MarkDecorator:
    """Run a test as each of some processors, but for those that tell nothing new on this machine, which are skipped."""
    skips = [[pytest.mark.skip(reason=v.idle)] if v.idle is not None else [] for v in variants]
    return pytest.mark.parametrize(
        "variant", [pytest.param(v, id=v.name, marks=marks) for v, marks in zip(variants, skips, strict=True)]
    )
