"""What the comparison of ways to answer rests on."""

import json
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from benchmarks.draws import distance, herd, mirrored
from benchmarks.heads import ratio
from benchmarks.processors import table as processors
from benchmarks.server_process import ROOT, TRIAGE
from benchmarks.serving import adapters
from benchmarks.serving.__main__ import timed
from benchmarks.serving.accuracy import decisions
from benchmarks.serving.contenders import PlainLora, SameThread
from benchmarks.serving.cost import Speeds, Work, work_of
from benchmarks.serving.profile import STAGES, stage_of
from blora.adapter import load_adapter
from blora.base_model import BaseModel
from blora.config import PosteriorConfig
from blora.decision.abstention import Policy
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow
from blora.posterior.inject import eject, inject
from blora.posterior.posterior import Posterior
from blora.training.rows.examples import read_examples
from blora.training.rows.packed import pack_examples
from tests.loras import lora_of_the_demos_task
from tests.scenarios import random_rows, tiny_model


def test_each_block_begins_with_another_way_and_all_answer_the_same_questions() -> None:
    calls: list[tuple[str, int]] = []
    ways = {name: lambda rows, name=name: calls.append((name, len(rows))) for name in ("a", "b", "published")}
    found = timed(ways, [random_rows(6), random_rows(6)])
    assert calls == [("a", 6), ("b", 6), ("published", 4), ("b", 6), ("published", 4), ("a", 6)]
    assert {name: len(seconds) for name, seconds in found.items()} == {"a": 2, "b": 2, "published": 2}


def test_a_ratio_is_taken_block_by_block() -> None:
    assert ratio({"a": [2.0, 6.0, 40.0], "b": [1.0, 2.0, 10.0]}, "a", "b")["median"] == 3.0


def test_a_withheld_answer_is_a_decision_of_its_own() -> None:
    answers = [torch.tensor([[0.9, 0.1]]), torch.tensor([[0.6, 0.4]]), torch.tensor([[0.1, 0.9]])]
    assert decisions(Policy(min_confidence=0.7), answers) == [0, None, 1]


def test_no_question_of_the_training_rows_is_left_for_the_calibration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapters, "WORK", tmp_path)
    n_known = adapters.N_TRAIN + adapters.N_VALIDATION
    questions = [f"question {n}" for n in range(n_known)] + ["question 7", "another"]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps({"question": question}) + "\n" for question in questions))
    known, others = (part.read_text().splitlines() for part in adapters._divide(file))
    assert len(known) == n_known
    assert [json.loads(row)["question"] for row in others] == ["another"]


def test_all_ways_compute_in_the_same_thread() -> None:
    here = SameThread()
    assert here.submit(threading.get_ident).result() == threading.get_ident()
    with pytest.raises(ZeroDivisionError):
        here.submit(lambda: 1 / 0).result()


# The model of the cost


def work(n_samples: int, rows: Sequence[PackedRow] = tuple(random_rows(5))) -> Work:
    return work_of(tiny_model(), rows, 1, n_samples, 10_000)


def test_more_draws_are_more_branches_on_the_same_trunk() -> None:
    few, many = work(4), work(16)
    assert many.trunk == few.trunk
    assert many.branches == pytest.approx(4 * few.branches)
    assert few.head < many.head < 4 * few.head


def test_longer_rows_are_more_of_everything() -> None:
    short, long = (work(4, [PackedRow(tuple(range(n)), ((1, 2), (3,)), "none")] * 5) for n in (3, 30))
    assert long.trunk > short.trunk
    assert long.branches > short.branches


def test_seconds_add_up_at_the_speed_of_each_part() -> None:
    assert Speeds(trunk=2.0, branches=4.0, head=8.0).seconds(Work(2.0, 4.0, 8.0)) == 3.0


# Where the time goes


@pytest.mark.parametrize(
    ("stack", "stage"),
    [
        (
            "run (server/commands/serve.py:1);post (h11/_state.py:3);forward (torch/nn/modules/linear.py:9)",
            "forward passes",
        ),
        ("work (thread.py:2);forward (site-packages/transformers/models/llama/m.py:9)", "forward passes"),
        ("work (thread.py:2);encode (site-packages/transformers/tokenization_utils.py:9)", "tokens and packing"),
        ("work (thread.py:2);pack (/x/blora/inference/packing.py:9);len (<built-in>)", "tokens and packing"),
        ("run (asyncio/base_events.py:1);read (uvicorn/protocols/http/h11_impl.py:2)", "HTTP"),
        (
            "run (uvicorn/server.py:1);_take (/x/blora/server/scheduling/batcher.py:2);sorted (<built-in>)",
            "queue and batching",
        ),
        ("run (threading.py:1)", "else"),
    ],
)
def test_a_sample_belongs_to_the_stage_of_its_innermost_known_frame(stack: str, stage: str) -> None:
    assert stage_of(stack.split(";")) == stage


@pytest.mark.parametrize(
    "part", [part for parts in STAGES.values() for part in parts if part.startswith(("blora/", "server/"))]
)
def test_a_stage_names_files_that_exist(part: str) -> None:
    assert list(ROOT.glob(f"{part}*"))


# Which draws


def test_herded_draws_come_nearer_to_all_than_the_first_ones() -> None:
    probs = torch.randn(64, 20, 3, generator=torch.Generator().manual_seed(0)).softmax(-1)
    order = herd(probs, 8)
    assert len(set(order)) == 8
    assert herd(probs, 4) == order[:4]
    assert distance(probs[order], probs.mean(0)) < 0.6 * distance(probs[:8], probs.mean(0))


def test_mirrored_draws_lie_around_the_mean() -> None:
    posterior = Posterior({"layers.0.q_proj": (6, 5)}, PosteriorConfig(rank=2), seed=0)
    with torch.no_grad():
        draws, mean = mirrored(posterior, 4, torch.Generator().manual_seed(0)), posterior.mean()
    for found, expected in ((f.A, mean.factors[name].A) for name, f in draws.factors.items()):
        torch.testing.assert_close(found[::2] + found[1::2], 2 * expected.expand(2, -1, -1))
        assert not torch.allclose(found[0], found[2])


# The baselines


@pytest.mark.model
@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")
def test_plain_lora_gives_the_same_packed_or_choice_by_choice_and_what_ours_gives_at_the_mean(
    smollm2_bf16: BaseModel, tmp_path: Path
) -> None:
    folder = lora_of_the_demos_task(tmp_path / "lora", smollm2_bf16)
    adapter = load_adapter(folder, smollm2_bf16)
    assert isinstance(adapter.posterior, Posterior)
    prompt = adapter.config.prompt
    examples = read_examples(str(TRIAGE / "test.jsonl"), choices=prompt.choices)
    rows = [row.row for row in pack_examples(examples, smollm2_bf16, prompt)][:3]
    inject(smollm2_bf16.model, adapter.posterior.modules_shape)
    with torch.no_grad():
        ours = score_all(smollm2_bf16.model, rows, adapter.posterior.mean(), max_batch_tokens=1024).exp()[0]
    eject(smollm2_bf16.model)
    lora = PlainLora(folder)
    found = zip(ours, lora.packed(rows), lora.per_choice(rows), lora.ensemble(rows), strict=True)
    for row, packed, apart, members in found:
        torch.testing.assert_close(
            packed[0], row, rtol=0, atol=2 * processors.distance("bfloat16")
        )  # each moves by itself
        torch.testing.assert_close(apart[0], row, rtol=0, atol=2 * processors.distance("bfloat16"))
        assert len(members) == 3
