"""What the order of the choices changes about what a model reads."""

from itertools import permutations

from blora.config import PromptConfig, ScoringName
from blora.inference.packing import PackedRow, pack
from blora.server.schemas.requests import Question
from tests.scenarios import tiny_tokenizer

CHOICES = ("yes", "no", "maybe")


def packed(choices: tuple[str, ...], scoring: ScoringName) -> PackedRow:
    config = PromptConfig(scoring=scoring)
    tokenizer = tiny_tokenizer()
    return pack(tokenizer, choices=choices, config=config, prompt="Is it?", messages=None, max_length=256)  # type: ignore[arg-type]


def test_a_text_is_scored_behind_the_same_prompt_in_every_order() -> None:
    rows = {order: packed(order, "text") for order in permutations(CHOICES)}
    seen = {
        (tuple(row.prompt), frozenset(zip(order, map(tuple, row.continuations), strict=True)))
        for order, row in rows.items()
    }
    assert len(seen) == 1


def test_a_label_is_scored_behind_another_prompt_in_each_order() -> None:
    prompts = {tuple(packed(order, "label").prompt) for order in permutations(CHOICES)}
    assert len(prompts) == 6


def test_the_api_says_so() -> None:
    description = Question.model_fields["scoring"].description
    assert description is not None
    assert "does not depend on the order of the choices" in description
    assert "up to 0.57" in description
