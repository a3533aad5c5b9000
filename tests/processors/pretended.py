"""Which processors a test runs as."""

from dataclasses import replace

import pytest

from benchmarks.processors.variants import AS_IT_IS, VARIANTS, Variant

__all__ = ["NOISY", "PRETENDED", "WHOLE", "each"]

PRETENDED = [v for v in VARIANTS if v.seed is None and v.name != AS_IT_IS]
NOISY = [v for v in VARIANTS if v.seed is not None]
# ATen's and oneDNN's names of the instruction sets that both know.
BOTH_KNOW = {"ATen avx2": "oneDNN up to AVX2", "ATen avx512": "oneDNN up to AVX512_CORE"}


def _whole() -> list[Variant]:
    """Return the processors, with one in place of two for each instruction set that both libraries can be held to."""
    named = {v.name: v for v in PRETENDED}
    for aten, onednn in BOTH_KNOW.items():
        first, second = named.pop(aten), named.pop(onednn)
        environment = first.environment | second.environment
        named[onednn] = replace(second, name=f"{first.name}, {second.name}", environment=environment)
    return list(named.values())


WHOLE = _whole()


def each(variants: list[Variant]) -> pytest.MarkDecorator:
    """Run a test as each of some processors, but for those that tell nothing new on this machine, which are skipped."""
    skips = [[pytest.mark.skip(reason=v.idle)] if v.idle is not None else [] for v in variants]
    return pytest.mark.parametrize(
        "variant", [pytest.param(v, id=v.name, marks=marks) for v, marks in zip(variants, skips, strict=True)]
    )
