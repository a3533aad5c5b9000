"""A torch device that is not the CPU, for machines without an accelerator.

The CPU computes what is on the device, so that results equal the CPU's. Tensors of both in one operation are refused, as
CUDA refuses them: of the CPU, only scalars and indices may be, and nothing on the device is read by NumPy. Importing the
module makes the device known to the process. As a pytest plugin, it also puts models there that a test has loaded on the
CPU.
"""

from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from blora.base_model import devices, loading
from blora.server.engines import torch_engine

__all__ = ["NAME", "OnDevice"]

NAME = "other"
aten = torch.ops.aten
COPIES = (aten.copy_.default,)
INDEXING = (aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default)
# What torch would compose of an empty tensor and an operation that resizes it, and what it calls on the device directly.
KERNELS = ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm", "copy_")


class OnDevice(Tensor):
    """A tensor on the device. `of_cpu` holds its values; views share them as on any device."""

    of_cpu: Tensor
    n_made: ClassVar[int] = 0

    @staticmethod
    def __new__(cls, of_cpu: Tensor) -> "OnDevice":
        # A view of a tensor from outside of inference mode is not one of inference mode.
        with torch.inference_mode(of_cpu.is_inference()):
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                of_cpu.size(),
                strides=of_cpu.stride(),
                storage_offset=of_cpu.storage_offset(),
                dtype=of_cpu.dtype,
                device=f"{NAME}:0",
            )
        made.of_cpu = of_cpu
        cls.n_made += 1
        return made

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"{self.of_cpu!r} on {NAME}"

    def tolist(self) -> Any:
        """Return the values as Python numbers, which torch refuses to do for subclasses."""
        return self.of_cpu.tolist()

    def untyped_storage(self) -> torch.UntypedStorage:
        """Return the storage that views share, for those who ask whether tensors do."""
        return self.of_cpu.untyped_storage()

    def data_ptr(self) -> int:
        """Return the address of the first value in that storage."""
        return self.of_cpu.data_ptr()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        """Return a tensor with values of its own."""
        copied = self.detach().clone().requires_grad_(self.requires_grad)
        memo[id(self)] = copied
        return copied

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _run(func, args, kwargs or {})

    __torch_function__ = torch._C._disabled_torch_function_impl


def _run(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, and return its result where it belongs."""
    if func is aten._has_compatible_shallow_copy_type.default:
        return False
    if func is aten._fused_sdp_choice.default:
        return 0  # attention composed of other operations
    leaves = tree_leaves((args, kwargs))
    tensors = {id(leaf.of_cpu): leaf for leaf in leaves if isinstance(leaf, OnDevice)}
    if func not in COPIES:
        by_index = func in INDEXING and isinstance(args[0], OnDevice)
        _refuse_mixtures(func, [args[0], *args[2:3]] if by_index else leaves)
    there = isinstance(args[0], OnDevice) if func in COPIES else bool(tensors)
    for leaf in leaves:
        if isinstance(leaf, torch.device):
            there = leaf.type == NAME
    if there and any(isinstance(leaf, torch.Generator) for leaf in leaves):
        raise RuntimeError(f"Expected a '{NAME}' device type for generator but found 'cpu' in {func}")

    def on_cpu(leaf: Any) -> Any:
        if isinstance(leaf, torch.device):
            return torch.device("cpu") if leaf.type == NAME else leaf
        return leaf.of_cpu if isinstance(leaf, OnDevice) else leaf

    def placed(found: Any) -> Any:
        if not there or not isinstance(found, Tensor):
            return found
        if id(found) not in tensors:
            return OnDevice(found)
        same = tensors[id(found)]  # it was changed in place
        if (same.size(), same.stride()) != (found.size(), found.stride()):
            raise RuntimeError(f"got {func}, which resizes a tensor on {NAME} in place: add its caller to KERNELS")
        return same

    args, kwargs = tree_map(on_cpu, (args, kwargs))
    return tree_map(placed, func(*args, **kwargs))


def _refuse_mixtures(func: Any, leaves: list[Any]) -> None:
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    of_cpu = [leaf for leaf in tensors if not isinstance(leaf, OnDevice) and leaf.dim() > 0]
    if of_cpu and len(of_cpu) < len(tensors):
        shapes = ", ".join(f"{tuple(leaf.shape)} on {leaf.device.type}" for leaf in tensors)
        raise RuntimeError(f"Expected all tensors to be on the same device, but {func} got {shapes}")


def _register() -> list[torch.library.Library]:
    """Make the device known to torch, and return the libraries that hold it."""
    _setup_privateuseone_for_python_backend(NAME)
    every, own = torch.library.Library("_", "IMPL"), torch.library.Library("aten", "IMPL")
    every.fallback(lambda func, *args, **kwargs: _run(func, args, kwargs), "PrivateUse1")
    for name in KERNELS:
        packet, _, overload = name.partition(".")
        func = getattr(getattr(aten, packet), overload or "default")
        own.impl(name, lambda *args, _func=func, **kwargs: _run(_func, args, kwargs), "PrivateUse1")
    return [every, own]


LIBRARIES = _register()


def pytest_configure() -> None:
    """Take the device in place of the CPU."""
    pick = devices.pick_device
    for module in (loading, torch_engine):
        module.pick_device = lambda device: pick(NAME if device == "cpu" else device)  # type: ignore[attr-defined]


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail if nothing was computed on the device."""
    if not OnDevice.n_made:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
