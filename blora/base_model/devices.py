"""The device of a base model, and the dtypes that it computes in."""

import logging

import torch

from blora.errors import BaseModelError

__all__ = ["native_dtypes", "pick_device", "pick_dtype", "sum_in_float32"]

logger = logging.getLogger(__name__)

# torch's names for bfloat16 instructions: Intel and AMD, Intel alone, Arm.
CPU_BF16 = ("avx512_bf16", "amx_bf16", "bf16")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(device: str) -> torch.device:
    """Return the torch device of a setting, with its index if it has one; auto is cuda if available, else cpu.

    Raises:
        BaseModelError: if torch cannot use the device on this machine.
    """
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        return torch.empty(0, device=device).device
    except (RuntimeError, AssertionError) as exc:
        reason = str(exc).partition("\n")[0]
        raise BaseModelError(
            f"got device {device!r}, which torch cannot use here ({reason}); expected auto, cpu or cuda"
        ) from exc


def native_dtypes(device: torch.device) -> tuple[str, ...]:
    """Return the dtypes that a device supports without emulation, the preferred one first, float32 always included."""
    if device.type == "cuda":
        with torch.cuda.device(device):  # torch answers for the current one
            bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return ("bfloat16", "float16", "float32") if bf16 else ("float16", "float32")
    if device.type == "cpu" and any(torch.cpu.get_capabilities().get(name) for name in CPU_BF16):
        return ("bfloat16", "float32")
    return ("float32",)


def sum_in_float32() -> None:
    """Let this process's GPUs add up in float32 what they multiply in less: answers then hardly depend on their batch.

    Logs a warning if torch is set to round the factors of float32 products, as by TORCH_ALLOW_TF32_CUBLAS_OVERRIDE=1.
    """
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = False
    if (precision := torch.get_float32_matmul_precision()) != "highest":
        logger.warning(
            "GPUs round the factors of float32 products here (torch's precision is %r, expected 'highest'): answers "
            "differ from those of other machines, and proved thresholds hold less exactly",
            precision,
        )


def pick_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """Return the torch dtype of a setting; auto is the first of `native_dtypes`.

    Raises:
        BaseModelError: if the setting names no dtype.
    """
    if dtype == "auto":
        return DTYPES[native_dtypes(device)[0]]
    if dtype not in DTYPES:
        raise BaseModelError(f"got dtype {dtype!r}, expected auto or one of {', '.join(DTYPES)}")
    return DTYPES[dtype]
