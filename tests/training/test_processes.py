import subprocess
import sys
from pathlib import Path

from blora.adapter import load_adapter
from blora.base_model import load_base_model
from tests.training.toys import train_arguments


def test_two_processes_train_one_adapter(tmp_path: Path, base_folder: Path, toy_file: Path) -> None:
    """Through accelerate, on the CPU: one claims the work folder and writes, neither trips over the other."""
    command = [sys.executable, "-m", "accelerate.commands.launch", "--cpu", "--num_machines=1", "--num_processes=2"]
    command += ["--mixed_precision=no", "--dynamo_backend=no", "-m", "blora.cli", "train"]
    command += train_arguments(base_folder, toy_file, tmp_path / "toy", "--batch-size", "2")
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert ended.returncode == 0, ended.stderr[-3000:]
    adapter = load_adapter(tmp_path / "toy", load_base_model(str(base_folder), device="cpu", dtype="float32"))
    learnt = [factors.B.abs().max() for factors in adapter.posterior.mean().factors.values()]
    assert min(learnt) > 0
    assert [path.name for path in tmp_path.iterdir()] == ["toy"]
