"""A head above a LoRA, whose training takes long, as a method of `benchmarks.peers`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from benchmarks.peers import heads as peer_heads
from benchmarks.peers.figures import Scored
from benchmarks.peers.heads import heads_above_lora
from benchmarks.peers.reading import SEEDS, read_set
from blora.base_model import load_base_model
from blora.training.head.train import TrainedHead, train_below
from tests.benchmarks.test_peers import pointer


class Killed(BaseException):
    """Stand-in for the sudden end of a process."""


class EndAfterAnEpoch(TrainerCallback):
    """Ends the process as soon as the checkpoint of an epoch is written."""

    def on_save(self, *_args: Any, **_events: Any) -> None:
        raise Killed


@pytest.mark.model
def test_a_kept_lora_is_trained_on_after_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = load_base_model("embedded", dtype="float32")
    read = read_set(base, pointer())

    def trained(folder: Path) -> Scored:
        return next(heads_above_lora(base, read, lambda seed: folder / f"lora-{seed}.pt", SEEDS[:1]))

    begun_after: list[Path | None] = []

    def train(*given: Any, callbacks: Sequence[TrainerCallback] = ()) -> TrainedHead:
        begun_after.append(given[-2])
        return train_below(*given[:-1], callbacks)

    monkeypatch.setattr(peer_heads, "train_below", train)
    whole = trained(tmp_path / "whole")
    with monkeypatch.context() as patch:
        patch.setattr(peer_heads, "train_below", partial(train, callbacks=(EndAfterAnEpoch(),)))
        with pytest.raises(Killed):
            trained(tmp_path / "parts")
    assert not (tmp_path / "parts" / "lora-0.pt").exists()
    torch.testing.assert_close(trained(tmp_path / "parts").test, whole.test, atol=1e-4, rtol=0)
    assert begun_after == [None, None, tmp_path / "parts" / "lora-0" / "checkpoint-1"]
