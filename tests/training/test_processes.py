import os
import socket
import subprocess
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from tests.training.toys import train_arguments


def test_two_processes_end_where_one_with_the_whole_batch_does(
    tmp_path: Path, base_folder: Path, toy_file: Path
) -> None:
    """On gloo: one process claims the work folder and writes the adapter, neither trips over the other."""
    for name, (n_processes, batch_size) in {"one": (1, "4"), "two": (2, "2")}.items():
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n_processes}"]
        command += [f"--master_port={port}", "-m", "blora.cli", "train"]
        more = ("--method", "lora", "--train-examples", "16", "--batch-size", batch_size)
        command += train_arguments(base_folder, toy_file, tmp_path / name, *more)
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert ended.stdout.count("wrote ") == n_processes
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for tensor, other in zip(one.values(), two.values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]
