"""Training runs in several processes, and the device of each process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, LlamaConfig

from benchmarks.server_process import free_port
from blora.errors import ConfigError
from blora.inference.vocabulary import MIN_VOCABULARY, plain_head
from blora.training import processes, run
from blora.training.commands import train
from blora.training.processes import claim_device
from tests.scenarios import CONFIGS, tiny_tokenizer
from tests.training.toys import train_arguments


@pytest.fixture(scope="module")
def wide_base_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny base model whose vocabulary is so large that its head runs separately."""
    folder = tmp_path_factory.mktemp("base") / "wide-llama"
    settings = CONFIGS["llama"].to_dict() | {"vocab_size": MIN_VOCABULARY}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(LlamaConfig(**settings))
    assert plain_head(model) is not None
    model.save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def test_two_processes_end_where_one_with_the_whole_batch_does(
    tmp_path: Path, wide_base_folder: Path, toy_file: Path
) -> None:
    """Train in two processes (gloo), of which only one claims the work folder and writes the adapter."""
    for name, (n_processes, batch_size) in {"one": (1, "4"), "two": (2, "2")}.items():
        port = free_port()
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc_per_node={n_processes}"]
        command += [f"--master_port={port}", "-m", "blora.cli", "train"]
        more = ("--method", "lora", "--train-examples", "16", "--batch-size", batch_size)
        command += train_arguments(wide_base_folder, toy_file, tmp_path / name, *more)
        environment = os.environ | {"ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
        ended = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert ended.returncode == 0, ended.stderr[-3000:]
        assert ended.stdout.count("wrote ") == n_processes
    one, two = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("one", "two"))
    for tensor, other in zip(one.values(), two.values(), strict=True):
        torch.testing.assert_close(tensor, other, rtol=1e-3, atol=1e-5)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one", "two"]


def test_the_device_is_claimed_before_the_base_model_is_loaded(
    tmp_path: Path, base_folder: Path, toy_file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    claimed: list[object] = []
    load = run.open_base

    def spy(*args: object, device: str, **kwargs: object) -> object:
        assert PartialState._shared_state, "the base model was loaded before the process had its device"
        claimed.append(device)
        return load(*args, device="cpu", **kwargs)  # type: ignore[arg-type]

    PartialState._reset_state()
    monkeypatch.setattr(run, "open_base", spy)
    monkeypatch.setattr(run, "claim_device", lambda device: (PartialState(cpu=True), "the device of this rank"))
    assert train.main(train_arguments(base_folder, toy_file, tmp_path / "out")) == 0
    assert claimed == ["the device of this rank"]


class FakeState:
    """A process as accelerate describes it on a machine with several GPUs."""

    def __init__(self, num_processes: int) -> None:
        self.num_processes = num_processes
        self.device = torch.device("cuda:1")


@pytest.mark.parametrize("device", ["auto", "cuda"])
def test_each_of_several_processes_takes_the_device_of_its_rank(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PartialState", lambda cpu: FakeState(2))
    assert claim_device(device)[1] == "cuda:1"


def test_several_processes_cannot_share_a_device_by_its_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "PartialState", lambda cpu: FakeState(2))
    with pytest.raises(ConfigError, match="got device 'cuda:0' for 2 processes, expected auto, cpu or cuda"):
        claim_device("cuda:0")


def test_the_device_of_a_single_process_is_torchs_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[str] = []
    monkeypatch.setattr(processes, "PartialState", lambda cpu: FakeState(1))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert claim_device("cuda:1")[1] == "cuda:1"
    assert current == ["cuda:1"]
