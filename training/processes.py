"""The processes of a training run and the device of each, which has to be set before any tensor is placed."""

import torch
from accelerate import PartialState

from blora.errors import ConfigError

__all__ = ["claim_device"]


def claim_device(device: str) -> tuple[PartialState, str]:
    """Return the state of this process within the run, and the device to load its base model on.

    The device becomes torch's current one, so that "cuda" refers to it in accelerate and transformers too.

    Args:
        device: as for `load_base_model`. If torchrun started several processes, each takes the device of its rank.

    Raises:
        ConfigError: if several processes are given one numbered device, or if torch cannot use the device.
    """
    on_cpu = device == "cpu" or (device == "auto" and not torch.cuda.is_available())
    processes = PartialState(cpu=on_cpu)
    if processes.num_processes == 1:
        if device.startswith("cuda:"):
            torch.cuda.set_device(device)
        return processes, device
    if device not in ("auto", "cpu", "cuda"):
        raise ConfigError(
            f"got device {device!r} for {processes.num_processes} processes, expected auto, cpu or cuda: each process "
            "takes the device of its rank"
        )
    if device == "cuda" and processes.device.type != "cuda":
        raise ConfigError(f"got device 'cuda', expected one that torch can use here, as {processes.device}")
    return processes, str(processes.device)
