"""A head above a LoRA, whose training takes long, as a method of `benchmarks.peers`."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import TrainerCallback

from benchmarks.elsewhere import lora
from benchmarks.elsewhere.modesty import WAYS
from benchmarks.elsewhere.sets import Elsewhere
from benchmarks.peers import heads as peer_heads
from benchmarks.peers import lora as peer_lora
from benchmarks.peers.figures import Scored
from benchmarks.peers.reading import SEEDS, read_set
from benchmarks.peers.results import measure
from benchmarks.peers.table import peers
from benchmarks.peers.twice import named_twice
from blora.base_model import load_base_model
from blora.training.head.train import TrainedHead, train_below
from blora.training.rows.packed import labels_of
from tests.benchmarks.test_peers import pointer


class Killed(BaseException):
    """Stand-in for the sudden end of a process."""


class EndAfterAnEpoch(TrainerCallback):
    """Ends the process as soon as the checkpoint of an epoch is written."""

    def on_save(self, *_args: Any, **_events: Any) -> None:
        raise Killed


@pytest.mark.model
def test_a_kept_lora_is_trained_on_after_its_last_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, task = load_base_model("embedded", dtype="float32"), pointer()
    read = read_set(base, task)

    def trained(folder: Path) -> Scored:
        return next(peer_lora.methods(base, read, SEEDS[:1], folder / "some.pt"))

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
    assert not (tmp_path / "parts" / "some-lora-0.pt").exists()
    torch.testing.assert_close(trained(tmp_path / "parts").test, whole.test, atol=1e-4, rtol=0)
    assert begun_after == [None, None, tmp_path / "parts" / "some-lora-0" / "checkpoint-1"]
    result = measure(task, map(named_twice, peer_lora.methods(base, read, SEEDS[:1], tmp_path / "whole" / "some.pt")))
    machine = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "command": "python -m some"}
    measured = result | machine | {"set": "demo", "base_model": "tiny", "dtype": "float32"}
    shown = peers([measured | {"rows": []}], [measured], [])
    assert "| head above a LoRA, posterior mean, read twice |" in shown
    assert "A LoRA whose posterior mean has no spread was trained with one seed." in shown
    assert "Above a LoRA, on 2 cores of some: `python -m some` (revision abc)." in shown
    some = Elsewhere(task, {"some": len(task.foreign)}, labelled=True)
    found = lora.measure(base, some, read, tmp_path / "whole" / "some-lora-0.pt")
    assert len(begun_after) == 3
    below = whole.test.double().exp().mean(0)  # the posterior mean's, before recalibration; the draws' lie around it
    assert found["test"]["without guesses"]["accuracy"] == pytest.approx(
        (below.argmax(-1) == labels_of(read.test.rows)).double().mean().item(), abs=0.1
    )
    assert set(found["foreign"]["some"]["ways"]) == set(WAYS)


def test_texts_that_bring_their_choices_are_not_read_twice(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["lora", "--set", "arc_easy", "--twice"])
    with pytest.raises(SystemExit):
        peer_lora.main()
    assert "got --twice for arc_easy, expected a set of short texts, banking77 or clinc150" in capsys.readouterr().err
