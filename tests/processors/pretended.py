"""Which processors a test runs as."""

from dataclasses import replace

import pytest

from benchmarks.processors.variants import AS_IT_IS, VARIANTS, Variant

__all__ = ["NOISY", "PRETENDED", "WHOLE", "each"]

PRETENDED = [v for v in VARIANTS if v.seed is None and v.name != AS_IT_IS]
NOISY = [v for v in VARIANTS if v.seed is not None]
# What one process can pretend at once, because each is a matter of another library or of its threads.
AT_ONCE = (
    ("ATen avx2", "oneDNN up to AVX2", "one thread"),
    ("ATen avx512", "oneDNN up to AVX512_CORE", "two threads"),
    ("ATen default", "oneDNN up to AVX512_CORE_BF16"),
    ("oneDNN up to AVX512_CORE_AMX",),
)


def _whole() -> list[Variant]:
    """Return the processors in groups, each of those of `AT_ONCE` that tell something new on this machine."""
    named = {v.name: v for v in PRETENDED}
    assert sorted(named) == sorted(name for names in AT_ONCE for name in names)
    found = []
    for names in AT_ONCE:
        group = [named[name] for name in names]
        live = [v for v in group if v.idle is None] or group
        environment = {name: value for v in live for name, value in v.environment.items()}
        threads = next((v.threads for v in live if v.threads is not None), None)
        name = ", ".join(v.name for v in live)
        found.append(replace(live[0], name=name, environment=environment, threads=threads))
    return found


WHOLE = _whole()


def each(variants: list[Variant]) -> pytest.MarkDecorator:
    """Run a test as each of some processors, but for those that tell nothing new on this machine, which are skipped."""
    skips = [[pytest.mark.skip(reason=v.idle)] if v.idle is not None else [] for v in variants]
    return pytest.mark.parametrize(
        "variant", [pytest.param(v, id=v.name, marks=marks) for v, marks in zip(variants, skips, strict=True)]
    )
