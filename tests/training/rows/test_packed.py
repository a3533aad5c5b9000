import re

import pytest
import torch

from blora.base_model import BaseModel
from blora.config import PromptConfig
from blora.errors import DataError
from blora.inference.batches import collate
from blora.training.rows.examples import Example, ExampleSet
from blora.training.rows.packed import collate_labelled, pack_examples
from tests.scenarios import MAX_LENGTH, spell, tiny_base
from tests.training.toys import CHOICES, labelled, toy_data


def example(prompt: str | None = "red 01", **changes: object) -> Example:
    fields = {"where": "toy.jsonl:3", "kind": "question", "prompt": prompt, "messages": None}
    return Example(**(fields | {"choices": CHOICES, "label": 1} | changes))  # type: ignore[arg-type]


def example_set(*examples: Example) -> ExampleSet:
    return ExampleSet("toy.jsonl", "sha256:0", examples)


def test_rows_keep_order_and_label(base: BaseModel) -> None:
    examples = example_set(*(example(f"red {n}", label=n % 2) for n in range(5)))
    rows = pack_examples(examples, base, PromptConfig(template="Q: {prompt}\nA:"))
    assert [row.label for row in rows] == [0, 1, 0, 1, 0]
    assert [spell(row.row.prompt) for row in rows] == [f"<s>Q: red {n}\nA:" for n in range(5)]
    assert [spell(tokens) for tokens in rows[0].row.continuations] == [" warm", " cold"]


def test_messages_go_through_the_chat_template(base: BaseModel) -> None:
    chat = ({"role": "user", "content": "red?"},)
    [row] = pack_examples(example_set(example(None, kind="messages", messages=chat)), base, PromptConfig())
    assert spell(row.row.prompt) == "user: red?\nassistant:"


def test_label_scoring_is_that_of_the_config(base: BaseModel) -> None:
    [row] = pack_examples(example_set(example()), base, PromptConfig(scoring="label"))
    assert spell(row.row.prompt) == "<s>red 01\nA. warm\nB. cold"
    assert [spell(tokens) for tokens in row.row.continuations] == [" A", " B"]
    assert row.label == 1


def test_a_row_that_is_too_long_is_named(base: BaseModel) -> None:
    examples = example_set(example(), example("x" * MAX_LENGTH, where="toy.jsonl:9"))
    message = f"toy.jsonl:9: got {MAX_LENGTH + 6} tokens of prompt and longest choice, expected at most {MAX_LENGTH}"
    with pytest.raises(DataError, match=f"^{re.escape(message)}"):
        pack_examples(examples, base, PromptConfig())


def test_all_rows_that_are_too_long_are_named_at_once(base: BaseModel) -> None:
    long = [example("x" * MAX_LENGTH, where=f"toy.jsonl:{n}") for n in range(12)]
    with pytest.raises(DataError, match="expected at most") as refused:
        pack_examples(example_set(example(), *long), base, PromptConfig())
    told = str(refused.value).splitlines()
    assert [line.split(": got")[0] for line in told] == [*(f"toy.jsonl:{n}" for n in range(10)), "and 2 more"]


def test_a_row_with_too_many_choices_for_labels_is_named(base: BaseModel) -> None:
    many = example(choices=tuple(f"c{n}" for n in range(27)))
    with pytest.raises(DataError, match=r"^toy\.jsonl:3: got 27 choices to score by label"):
        pack_examples(example_set(many), base, PromptConfig(scoring="label"))


HALF = "half a pair: \ud800"


@pytest.mark.parametrize(
    "row",
    [
        example(HALF),
        example(None, kind="messages", messages=({"role": "user", "content": HALF},)),
        example(choices=("warm", HALF)),
    ],
)
def test_a_row_that_the_tokenizer_cannot_encode_is_named(base: BaseModel, row: Example) -> None:
    with pytest.raises(DataError, match=r"^toy\.jsonl:3: got half of a surrogate pair, .*; correct the text$"):
        pack_examples(example_set(row), base, PromptConfig())


def test_a_row_with_choices_that_are_the_same_tokens_is_named(base: BaseModel) -> None:
    with pytest.raises(
        DataError, match=r"^toy\.jsonl:3: got choices '\\u2600' and '\\u2601', which are the same tokens"
    ):
        pack_examples(example_set(example(choices=("\u2600", "\u2601"))), base, PromptConfig())


def test_a_batch_is_the_collated_rows_and_their_labels() -> None:
    rows = labelled(tiny_base(), toy_data(5))
    batch = collate_labelled(rows)
    assert set(batch) == {"batch", "labels"}
    assert torch.equal(batch["labels"], torch.tensor([row.label for row in rows]))
    expected = collate([row.row for row in rows])
    for name in ("input_ids", "position_ids", "segment", "token", "choice", "is_choice"):
        assert torch.equal(getattr(batch["batch"], name), getattr(expected, name))
