"""Reading of a plain LoRA from PEFT's two files: its adapted modules and its factors."""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from torch import Tensor
from torch.nn import functional as F

from blora.disk.files import TensorsFile, read_json
from blora.errors import AdapterError
from blora.posterior.draws import Factors

__all__ = [
    "LORA_CONFIG_FILE",
    "WEIGHTS_FILE",
    "LoraShape",
    "balanced",
    "check_tensors",
    "factor_shapes",
    "lora_shape",
    "named_base",
    "read_lora",
    "read_tensors",
    "tensor_name",
]

LORA_CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
# Settings that leave the update at alpha / rank * B @ A for every value; all others must have PEFT's default.
HARMLESS = frozenset(
    {
        *("base_model_name_or_path", "revision", "task_type", "auto_mapping", "peft_version"),  # where it comes from
        *("r", "lora_alpha"),  # read, and checked against the factors
        *("target_modules", "exclude_modules", "layers_to_transform", "layers_pattern"),  # the factors' names tell
        *("inference_mode", "lora_dropout", "fan_in_fan_out", "runtime_config"),  # affect training, memory, merging
        *("megatron_core", "qalora_group_size"),  # read only with megatron_config and use_qalora
        *("corda_config", "eva_config", "lora_ga_config", "loftq_config"),  # read only if init_lora_weights names them
    }
)
# Initialisations that leave the base model's weights unchanged.
HARMLESS_STARTS = (True, False, None, "gaussian", "orthogonal")
# Limit for the tensor names in a message.
_NAMED = 3
_TENSOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")


@dataclass(frozen=True, slots=True)
class LoraShape:
    """Rank, scale and adapted modules of a LoRA.

    Attributes:
        rank: rank of every update.
        alpha: LoRA scale; the update is alpha / rank * B @ A.
        modules: (d_out, d_in) of each adapted module, by its name in the base model.
    """

    rank: int
    alpha: float
    modules: dict[str, tuple[int, int]]


def lora_shape(path: Path) -> LoraShape:
    """Return rank, scale and adapted modules of a plain PEFT LoRA directory.

    Raises:
        AdapterError: if the LoRA is missing or not plain, as by a setting that changes the update or the base model.
    """
    settings = _settings(path)
    _check_plain(path, settings)
    rank, alpha = settings.get("r"), settings.get("lora_alpha")
    if not isinstance(rank, int) or not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise AdapterError(
            f"got r = {rank!r} and lora_alpha = {alpha!r} in {path}, expected a whole number and a finite "
            "positive one; check the file"
        )
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, info in TensorsFile(path / WEIGHTS_FILE, advice="check the path").tensors.items():
        if not (match := _TENSOR.fullmatch(name)):
            raise AdapterError(f"got tensor {name} in {path}, expected LoRA factors only; start from a plain LoRA")
        sides.setdefault(match.group(1), {})[match.group(2)] = info.shape
    modules = {}
    for module, shapes in sides.items():
        A, B = shapes.get("A", ()), shapes.get("B", ())
        if len(A) != 2 or len(B) != 2 or A[0] != rank or B[1] != rank:
            raise AdapterError(
                f"got factors of shapes {A} and {B} for {module}, expected (rank, d_in) and (d_out, rank) "
                f"with rank {rank}; start from a plain LoRA"
            )
        modules[module] = (B[0], A[1])
    if not modules:
        raise AdapterError(f"got {path}, which holds no factors, expected those of a LoRA; check the path")
    return LoraShape(rank, float(alpha), modules)


def named_base(path: Path) -> str | None:
    """Return the base model's name or path as a PEFT LoRA directory has it, None if there is none.

    Raises:
        AdapterError: if the LoRA is missing.
    """
    named = _settings(path).get("base_model_name_or_path")
    return named if isinstance(named, str) and named else None


def read_lora(path: Path, modules: Mapping[str, tuple[int, int]], rank: int, alpha: float) -> dict[str, Factors]:
    """Return the factors of a plain PEFT LoRA, or of an adapter's mean, for exactly the given modules.

    Args:
        path: a directory with PEFT's two files.
        modules: (d_out, d_in) of each module that the LoRA must adapt, by name.
        rank: the LoRA's rank.
        alpha: the LoRA's scale.

    Returns:
        A (1, rank, d_in) and B (1, d_out, rank) of each module.

    Raises:
        AdapterError: if the LoRA is missing, is not plain, adapts other modules, or has another rank or scale.
    """
    settings = _settings(path)
    _check_plain(path, settings)
    for name, wanted, flag in (("r", rank, "--rank"), ("lora_alpha", alpha, "--alpha")):
        if settings.get(name) != wanted:
            raise AdapterError(
                f"got {name} = {settings.get(name)!r} in {path}, expected {wanted}; start from a LoRA of that size, or "
                f"pass {flag} {settings.get(name)}"
            )
    expected = {name: torch.empty(shape, device="meta") for name, shape in factor_shapes(modules, rank)}
    tensors = read_tensors(TensorsFile(path / WEIGHTS_FILE, advice="check the path"), expected)
    return {
        name: Factors(tensors[tensor_name(name, "A")].float()[None], tensors[tensor_name(name, "B")].float()[None])
        for name in modules
    }


def balanced(factors: Factors) -> Factors:
    """Return factors of the same updates B A in which A and B each carry the square root of every singular value.

    Noise of a given size then has the same effect on either factor, independent of the norms that the optimiser left.
    If rank exceeds d_out or d_in, the surplus directions are zero.

    Args:
        factors: A (S, rank, d_in) and B (S, d_out, rank).

    Returns:
        Factors of the same shapes.
    """
    rank = factors.A.shape[-2]
    left, R_left = torch.linalg.qr(factors.B)
    right, R_right = torch.linalg.qr(factors.A.mT)
    U, singular, Vh = torch.linalg.svd(R_left @ R_right.mT, full_matrices=False)
    root = singular.sqrt()
    A, B = root[..., :, None] * (Vh @ right.mT), (left @ U) * root[..., None, :]
    missing = rank - root.shape[-1]
    return Factors(A=F.pad(A, (0, 0, 0, missing)), B=F.pad(B, (0, missing)))


def tensor_name(module: str, side: str) -> str:
    """Return PEFT's name of a module's factor; side is A or B."""
    return f"base_model.model.{module}.lora_{side}.weight"


def factor_shapes(modules: Mapping[str, tuple[int, int]], rank: int) -> Iterable[tuple[str, tuple[int, ...]]]:
    """Yield PEFT's name and the shape of each factor of a LoRA, given the modules' (d_out, d_in)."""
    for name, (d_out, d_in) in modules.items():
        yield tensor_name(name, "A"), (rank, d_in)
        yield tensor_name(name, "B"), (d_out, rank)


def check_tensors(file: TensorsFile, expected: Iterable[tuple[str, tuple[int, ...]]]) -> None:
    """Raise an error unless a file's header lists exactly the expected tensors.

    Args:
        file: the file, of which only the header is used.
        expected: names and shapes; iteration stops soon after the first missing tensors, so that a config with a
            huge number of tensors costs little.

    Raises:
        AdapterError: if tensors are missing, are not expected, or have another shape; the message names some.
    """
    known: set[str] = set()
    missing: list[str] = []
    for name, shape in expected:
        info = file.tensors.get(name)
        if info is None:
            missing.append(name)
            if len(missing) > _NAMED:
                break
        elif info.shape != tuple(shape):
            raise AdapterError(f"got {name} of shape {info.shape} in {file.file.name}, expected {tuple(shape)}")
        known.add(name)
    if missing:
        raise AdapterError(f"got {file.file.name} without {_some(missing)}; restore the file or train again")
    if unknown := sorted(file.tensors.keys() - known):
        raise AdapterError(f"got {file.file.name} with tensors that match no module: {_some(unknown)}")


def read_tensors(file: TensorsFile, expected: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a file's tensors, which must match the expected ones in name, shape and kind, and must be finite.

    Every value must be finite in float32, in which it is used. The values of the expected tensors are ignored.
    """
    check_tensors(file, ((name, tuple(tensor.shape)) for name, tensor in expected.items()))
    tensors = file.read()
    for name, tensor in tensors.items():
        wanted = expected[name].dtype
        if not (tensor.is_floating_point() if wanted.is_floating_point else tensor.dtype == wanted):
            raise AdapterError(f"got {name} of {tensor.dtype} in {file.file.name}, expected {wanted}")
        if not bool(tensor.float().isfinite().all()):
            raise AdapterError(f"got {name} in {file.file.name} with values that are not finite; train again")
    return tensors


def _settings(path: Path) -> dict[str, Any]:
    found = read_json(path / LORA_CONFIG_FILE, advice="check the path")
    return found if isinstance(found, dict) else {}


def _check_plain(path: Path, settings: Mapping[str, Any]) -> None:
    start = settings.get("init_lora_weights", True)
    if start not in HARMLESS_STARTS:
        raise AdapterError(
            f"got init_lora_weights = {start!r} in {path}, which can change the base model's weights, "
            f"expected one of {', '.join(map(repr, HARMLESS_STARTS))}; save it again with PEFT's "
            "path_initial_model_for_weight_conversion, or start from a plain LoRA"
        )
    defaults = LoraConfig().to_dict()  # type: ignore[no-untyped-call]
    for name in sorted(settings.keys() - HARMLESS - {"init_lora_weights"}):
        got, wanted = settings[name], defaults.get(name)
        if got != wanted and (got or wanted):  # null, false and empty all mean off
            wanted = getattr(wanted, "value", wanted)
            known = "" if name in defaults else ", a setting that this version of PEFT does not have"
            raise AdapterError(f"got {name} = {got!r} in {path}{known}, expected {wanted!r}; start from a plain LoRA")


def _some(names: list[str]) -> str:
    return ", ".join(names[:_NAMED]) + (" and more" if len(names) > _NAMED else "")
