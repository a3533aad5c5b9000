"""The peers' sets read otherwise: twice, by two models, and at fewer depths."""

import pytest
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler

from benchmarks.peers import companion, depths, product, twice
from benchmarks.peers.figures import Scored
from benchmarks.peers.reading import EMPTY_LORA, cost_ms, read_set
from benchmarks.peers.regressions import Parts, multiplied, on_states, on_words, tuned
from benchmarks.peers.results import measure
from benchmarks.peers.table import peers
from blora.base_model import load_base_model
from blora.inference.architecture import check_packing
from blora.inference.companion import with_companion
from blora.training.head.features import read_features
from tests.benchmarks.test_peers import linear
from tests.blora.inference.test_encoders import encoder


@pytest.mark.model
def test_a_text_read_twice_is_measured_and_shown_beside_the_other_methods() -> None:
    once, base = linear(), load_base_model("embedded", dtype="float32")
    task = twice.twice(once)
    assert task.prompt.template == "{prompt}\n{prompt}"
    assert task.parts() == once.parts()
    read = read_set(base, task)
    tokens = [row.row.prompt_tokens for row in read.test.rows]
    assert tokens == [2 * len(base.tokenizer(row.prompt).input_ids) + 1 for row in task.test]  # and a line break
    costs = cost_ms([(base, once, read.config), (base, task, read.config)])
    assert 0 < costs[0] < costs[1]
    result = measure(task, twice.methods(task, read))
    names = [row["method"] for row in result["rows"]][::2]
    simple = ["regression on frozen states", "head, posterior mean", "head, 64 draws"]
    assert names == [f"{name}, read twice" for name in simple]
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": "tiny", "dtype": "float32"}
    measured = result | about | {"set": "demo", "once_ms": 2.0, "twice_ms": 3.0}
    shown = peers([measured | {"rows": []}], [measured], [])
    assert all(f"| {name} |" in shown for name in names)
    assert "A text alone takes 1.50 (demo) times as long as once" in shown


@pytest.mark.model
def test_what_a_companion_adds_is_measured_and_shown() -> None:
    task, alone = linear(), load_base_model("embedded", dtype="float32")
    both = with_companion(alone, check_packing(encoder()))
    read = read_set(both, task)
    assert read.config.companion is not None
    assert (read.config.n_base_states, read.config.n_companion_states) == (5 * 576, 2 * 32)
    assert read.test.features.states.shape[1] == 5 * 576 + 2 * 32
    result = measure(task, companion.methods(task, read))
    names = [row["method"] for row in result["rows"]][::2]
    simple = ["regression on frozen states", "head, posterior mean", "head, 64 draws"]
    assert names == [f"{name}, both models" for name in simple]
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": "tiny", "dtype": "float32"}
    measured = result | about | {"set": "demo", "embedded_ms": 2.0, "both_ms": 3.0}
    shown = peers([measured | {"rows": []}], [measured], [])
    assert all(f"| {name} |" in shown for name in names)
    assert "A text alone takes 1.50 (demo) times as long as by the embedded model alone" in shown


@pytest.mark.model
def test_the_products_of_regressions_are_measured_and_shown() -> None:
    task = linear()
    both = with_companion(load_base_model("embedded", dtype="float32"), check_packing(encoder()))
    result = measure(task, product.methods(task, read_set(both, task)))
    names = [row["method"] for row in result["rows"]][::2]
    multiplied = "regressions on words and states, multiplied"
    assert names == [multiplied, f"{multiplied}, both models"]
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": "tiny", "dtype": "float32"}
    measured = result | about | {"set": "demo"}
    shown = peers([measured | {"rows": []}], [measured], [])
    assert all(f"| {name} |" in shown for name in names)
    assert "Revision abc; `python -m benchmarks.peers.product`" in shown


def test_a_product_takes_the_powers_that_validation_rows_ask_for() -> None:
    """Words tell the label of a third of the texts, and states that of the others; a third factor tells nothing."""
    generator = torch.Generator().manual_seed(0)
    texts, told, chance, labels = {}, {}, {}, {}
    for name, n in (("train", 120), ("validation", 60), ("test", 60)):
        labels[name] = torch.arange(n) % 2
        texts[name] = [
            ("yes", "no")[label] if i % 3 == 0 else "perhaps" for i, label in enumerate(labels[name].tolist())
        ]
        hidden = (torch.arange(n) % 3 == 0).float()
        told[name] = ((2.0 * labels[name] - 1) * (1 - hidden))[:, None].numpy()
        chance[name] = torch.randn(n, 1, generator=generator).numpy()
    own = labels["train"], labels["validation"]
    words, states, noise = (Parts(inputs, *own) for inputs in (texts, told, chance))

    def accuracy(scored: Scored) -> float:
        return float((scored.test[0].argmax(-1) == labels["test"]).float().mean())

    assert accuracy(on_words(words)) < 0.8
    assert accuracy(on_states(states)) < 0.9
    assert accuracy(multiplied("both", words, states)) == 1
    assert accuracy(multiplied("all", words, states, noise)) == 1


@pytest.mark.model
def test_a_head_at_fewer_depths_is_the_one_that_reads_no_more_and_its_pass_is_shorter() -> None:
    once, base = linear(), load_base_model("embedded", dtype="float32")
    read = read_set(base, once)
    assert depths.ways(read.config.depths) == [(10, 15, 20, 25, 30), (10, 15, 20, 25), (10, 15, 20), (10, 15)]
    less = depths.at_depths(read, (15, 20))
    lora = EMPTY_LORA.mean()
    direct = read_features(base.model, less.test.rows, less.config, lora, "reading")
    assert torch.equal(less.test.features.states, direct.states)
    assert torch.equal(less.test.prompts, direct.states)
    assert less.foreign is not None
    assert less.foreign.features.states.shape == (4, 2 * 576)
    ran: list[int] = []
    hooks = [
        layer.register_forward_pre_hook(lambda *_, index=index: ran.append(index))
        for index, layer in enumerate(base.model.model.layers)
    ]
    [cost] = cost_ms([(base, once, depths.at_depths(read, (10, 15)).config)])
    for hook in hooks:
        hook.remove()
    assert cost > 0
    assert ran == [*range(15)] * len(once.test)
    result = measure(once, depths.methods(read, 1))
    rows = [row for row in result["rows"] if row["treatment"] == "recalibrated"]
    assert [row["method"] for row in rows] == [
        "1: 10, 15, 20, 25, 30",
        "1: 10, 15, 20, 25",
        "1: 10, 15, 20",
        "1: 10, 15",
    ]
    about = {"machine": {"cores": 2, "processor": "some"}, "revision": "abc", "base_model": "tiny", "dtype": "float32"}
    named = [row | {"n_texts": 1, "depths": [10, 15], "cost": 0.5} for row in rows]
    assert "| toy | once | 10, 15 | 0.50 | 1.000 ± 0.000 |" in depths.table([result | about | {"rows": named}])


def test_a_regression_is_penalised_more_or_less_than_the_first_candidates_where_that_is_better() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat(100)
    signal = torch.nn.functional.one_hot(labels, 2).float()
    parts = {name: (signal + 4 * torch.randn(200, 2, generator=generator)).numpy() for name in ("train", "validation")}
    tried = []

    def make(c: float) -> Pipeline:
        tried.append(c)
        return make_pipeline(StandardScaler(), LogisticRegression(C=c))

    found = tuned(make, (30, 100), Parts(parts, labels, labels))
    assert tried[:2] == [30, 100]
    assert found[-1].C in tried[2:]
    assert all(c < 30 for c in tried[2:])
