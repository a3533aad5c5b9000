"""Features of training rows: what all rows begin with is computed once, and changes nothing."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from blora.base_model import BaseModel
from blora.config import PosteriorConfig
from blora.errors import NumericalError
from blora.inference.packing import PackedRow
from blora.inference.prefix import Prefix
from blora.posterior.inject import inject
from blora.posterior.noise import generator_of
from blora.posterior.posterior import Posterior
from blora.training.config import NEW_PROMPT
from blora.training.head import features
from blora.training.head.train import default_head
from blora.training.rows.examples import Example, ExampleSet
from blora.training.rows.packed import LabelledRow, pack_examples
from tests.scenarios import adapted_modules
from tests.training.toys import CHOICES

INSTRUCTIONS = "Sort what a customer writes by the colour that it is about, whatever else it says. "


def rows_of(base: BaseModel, readout: str) -> list[LabelledRow]:
    texts = ["red", "a very much longer text about blue", "blue", "nothing"]
    examples = tuple(Example(f"toy:{text}", "prompt", text, None, CHOICES, 0) for text in texts)
    fixed: dict[str, Any] = {"choices": CHOICES} if readout == "linear" else {}
    prompt = replace(NEW_PROMPT, template=INSTRUCTIONS + "{prompt}", readout=readout, **fixed)
    return pack_examples(ExampleSet("toy", "sha256:0", examples), base, prompt)


def test_a_question_with_many_choices_does_not_widen_the_others(base: BaseModel) -> None:
    config = default_head(2, base.model.config.hidden_size, linear=False)
    few, many = (
        LabelledRow(PackedRow((3, 4), tuple((5, 6 + k) for k in range(n)), "none", readout="pointer"), 0)
        for n in (2, 30)
    )
    draw = Posterior({}, PosteriorConfig(), seed=0).sample(1, generator_of(0))
    found = features.read_features(base.model, [few, many, few], config, draw, "")
    assert len(found) == 3
    assert len(found.states) == len(found.counts) == 2 + 30 + 2
    assert found.owner is not None
    assert found.owner.tolist() == [0] * 2 + [1] * 30 + [2] * 2
    torch.testing.assert_close(found.states[:2], found.states[-2:])
    alone = features.read_features(base.model, [many], config, draw, "")
    torch.testing.assert_close(found.states[2:-2], alone.states, atol=1e-4, rtol=1e-4)
    own = found.choices()
    assert own is not None
    assert torch.equal(own[0], found.states)
    assert own[1].tolist() == found.owner.tolist()


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_states_that_overflow_are_refused_by_row(
    readout: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(base, readout)
    config = default_head(2, base.model.config.hidden_size, linear=readout == "linear")
    draw = Posterior({}, PosteriorConfig(), seed=0).sample(1, generator_of(0))
    read = features.read_rows

    def overflown(model: Any, packed: Any, *rest: Any) -> Any:
        found = read(model, packed, *rest)
        for place, row in enumerate(packed):
            if row == rows[2].row:
                found.states[place] = torch.inf
        return found

    monkeypatch.setattr(features, "read_rows", overflown)
    with pytest.raises(NumericalError, match="got states that are not finite in 1 of 4 rows, row 2 the first"):
        features.read_features(base.model, rows, config, draw, "")


@pytest.mark.parametrize("readout", ["linear", "pointer"])
@pytest.mark.parametrize("below", ["nothing", "a LoRA"])
def test_a_common_beginning_is_read_once(
    readout: str, below: str, base: BaseModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = default_head(2, base.model.config.hidden_size, linear=readout == "linear")
    lora = Posterior(adapted_modules(base.model) if below == "a LoRA" else {}, PosteriorConfig(rank=2), seed=0)
    inject(base.model, lora.modules_shape)
    draw = lora.sample(1, generator_of(0))
    rows = rows_of(base, readout)
    read: list[int] = []
    once = features.read_rows

    def counting(
        model: object, some: list[PackedRow], config: object, lora: object, prefix: Prefix | None
    ) -> features.Features:
        read.extend(row.n_tokens - (len(prefix.tokens) if prefix is not None else 0) for row in some)
        return once(base.model, some, config, lora, prefix)  # type: ignore[arg-type]

    monkeypatch.setattr(features, "read_rows", counting)
    found = features.read_features(base.model, rows, config, draw, "")
    assert max(read) < 60
    with monkeypatch.context() as without:
        without.setattr(features, "n_shared", lambda model, rows: 0)
        expected = features.read_features(base.model, rows, config, draw, "")
    assert min(read[len(rows) :]) > len(INSTRUCTIONS)
    for one, other in (
        (found.states, expected.states),
        (found.counts, expected.counts),
        (found.prompt, expected.prompt),
    ):
        assert one is not None
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)
    assert len(found.grams) == (len(rows) if readout == "linear" else 0)
    torch.testing.assert_close(found.grams, expected.grams)
