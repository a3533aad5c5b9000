"""The processors that this machine can pretend to be, by variables that oneDNN and ATen read when torch is loaded.

A variable takes instructions away; none adds what is not there. A noisy processor stands for those that are elsewhere.
"""

import os
from dataclasses import dataclass, field

import torch

from benchmarks.processors import noise

__all__ = ["AS_IT_IS", "VARIANTS", "Variant"]

AS_IT_IS = "as it is"


@dataclass(frozen=True, slots=True)
class Variant:
    """A processor to pretend to be.

    Attributes:
        name: as the table shows it.
        environment: variables that have to be set when torch is loaded.
        needs: an instruction set that the machine must have, as torch calls it.
        takes: the instruction sets that it takes away, of which a machine must have one; none if that is not known.
        threads: number of threads, None for torch's own.
        seed: of the noise, None for none.
        dtypes: in which it differs from this machine as it is.
    """

    name: str
    environment: dict[str, str] = field(default_factory=dict)
    needs: str | None = None
    takes: tuple[str, ...] = ()
    threads: int | None = None
    seed: int | None = None
    dtypes: tuple[str, ...] = ("float32", "bfloat16")

    @property
    def idle(self) -> str | None:
        """Why it tells nothing new on this machine, which cannot be it or is the same as it is; None where it does."""
        has = torch.cpu.get_capabilities()
        if self.needs is not None and not has.get(self.needs):
            return f"this processor has no {self.needs}"
        if self.takes and not any(has.get(name) for name in self.takes):
            return f"this processor has nothing beyond {self.needs}, so that this would be the processor as it is"
        if self.threads == torch.get_num_threads():
            return f"this process has as many threads as it is: {self.threads}"
        return None

    def variables(self) -> dict[str, str]:
        """Return the whole environment of a process that is to compute so."""
        found = {**os.environ, **self.environment}
        found.pop(noise.SEED, None)
        if self.threads is not None:
            found |= {"OMP_NUM_THREADS": str(self.threads), "MKL_NUM_THREADS": str(self.threads)}
        return noise.environment(self.seed, found) if self.seed is not None else found


def _onednn(isa: str, needs: str, *takes: str) -> Variant:
    return Variant(f"oneDNN up to {isa}", {"ONEDNN_MAX_CPU_ISA": isa}, needs, takes)


def _aten(capability: str, needs: str | None, *takes: str) -> Variant:
    # oneDNN computes the products in bfloat16, whatever ATen's own kernels are.
    return Variant(f"ATen {capability}", {"ATEN_CPU_CAPABILITY": capability}, needs, takes, dtypes=("float32",))


# What oneDNN may use beyond each instruction set.
_BEYOND_AMX = ("amx_fp16", "avx10_2")
_BEYOND_BF16 = ("amx_bf16", "amx_int8", "avx512_fp16", *_BEYOND_AMX)
_BEYOND_AVX512 = ("avx512_bf16", "avx512_vnni", *_BEYOND_BF16)
_BEYOND_AVX2 = ("avx_vnni", "avx_vnni_int8", "avx_ne_convert", "avx512_bw", *_BEYOND_AVX512)

VARIANTS = (
    Variant(AS_IT_IS),
    *(Variant(name, threads=n, dtypes=("float32",)) for n, name in ((1, "one thread"), (2, "two threads"))),
    *(Variant(f"noisy, seed {seed}", seed=seed, dtypes=("bfloat16",)) for seed in range(3)),
    _onednn("AVX2", "avx2", *_BEYOND_AVX2),
    _onednn("AVX512_CORE", "avx512_bw", *_BEYOND_AVX512),
    _onednn("AVX512_CORE_BF16", "avx512_bf16", *_BEYOND_BF16),
    _onednn("AVX512_CORE_AMX", "amx_bf16", *_BEYOND_AMX),
    _aten("default", None),
    _aten("avx2", "avx2", "avx512_bw"),
    _aten("avx512", "avx512_bw"),
)
