"""Texts that are too long, most of which are refused without being tokenised."""

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from blora.errors import PromptTooLongError
from blora.server.engines.loading import longest_token
from blora.server.errors import TooLargeError
from blora.server.prediction.tokenizing import Lengths
from blora.server.schemas.requests import PredictRequest
from blora.server.settings import Settings
from tests.scenarios import tiny_tokenizer
from tests.server.fakes import FakeEngine, FakeRow, Running, running
from tests.server.prediction.test_predictor import flood

LENGTHS = Lengths(prompt=10, row=12, longest_token=5)
CHOICES = ("a", "b")


def test_the_longest_token_is_no_shorter_than_any_token_of_a_text() -> None:
    tokenizer = tiny_tokenizer()
    longest = longest_token(tokenizer)
    for text in ("Where is my order? " * 20, "x" * 500, " " * 500, "żółć 你好 🙂" * 20):
        assert len(text) <= longest * len(tokenizer(text)["input_ids"])


def refusal(prompt: str, choices: tuple[str, ...] = CHOICES, *, own: bool = True) -> TooLargeError:
    question = PredictRequest(prompt=prompt, choices=list(choices) if own else None)

    def check() -> None:
        LENGTHS.check_characters(question, choices)
        LENGTHS.check_row(Words(prompt, choices), question, choices)

    with pytest.raises(TooLargeError) as info:
        check()
    assert info.value.code == "prompt_too_long"
    return info.value


class Words(FakeRow):
    """Row with one token per word of prompt and choices; the last token of a choice is not read."""

    @property
    def scored_tokens(self) -> int:
        return sum(len(choice.split()) for choice in self.choices)

    @property
    def n_tokens(self) -> int:
        return self.prompt_tokens + self.scored_tokens - self.n_choices


@pytest.mark.parametrize(
    ("prompt", "choices", "param", "message"),
    [
        ("w " * 11, CHOICES, "prompt", "a prompt of 11 tokens, expected at most 10: shorten it"),
        (
            "w " * 9,
            ("x y z", "x y w"),
            "prompt",
            "expected at most 8 beside these choices: shorten it, or raise --max-batch-tokens",
        ),
        (
            "w",
            ("x " * 8, "y " * 8),
            "choices",
            "choices of 16 tokens, expected at most 13 beside this prompt: shorten the choices, or raise "
            "--max-batch-tokens",
        ),
        ("w" * 51, CHOICES, "prompt", "The prompt has 51 characters, which make more than 10 tokens"),
        ("w", ("x", "y" * 60), "choices", "The choices have 61 characters, which make more than 12 tokens"),
    ],
)
def test_what_is_long_is_named_and_told_its_limit(
    prompt: str, choices: tuple[str, ...], param: str, message: str
) -> None:
    error = refusal(prompt, choices)
    assert error.param == param
    assert message in str(error)


def test_a_prompt_of_the_length_that_was_told_is_short_enough() -> None:
    choices = ("x y z", "x y w")
    question = PredictRequest(prompt="w " * 8, choices=list(choices))
    LENGTHS.check_row(Words(question.prompt or "", choices), question, choices)


def test_what_has_as_many_characters_as_its_tokens_could_is_tokenised() -> None:
    choices = ("x", "y" * 59)
    assert LENGTHS.check_characters(PredictRequest(prompt="w" * 50, choices=list(choices)), choices) == 110


async def test_choices_have_room_beside_a_prompt_of_the_largest_allowed_length() -> None:
    model = (await FakeEngine().load()).model
    lengths = Lengths.of(Settings(max_prompt_tokens=100, max_batch_tokens=104, max_queue_tokens=1000), model)
    choices = ("x y z", "x y w")
    question = PredictRequest(prompt="w " * 100, choices=list(choices))
    lengths.check_row(Words(question.prompt or "", choices), question, choices)


def test_an_adapters_own_choices_are_not_the_clients_to_shorten() -> None:
    assert refusal("w w w", ("x " * 6, "y " * 6), own=False).param == "prompt"


class ShortModel(FakeEngine):
    """Engine that refuses every question as too long."""

    async def pack(self, *args: object, **kwargs: object) -> FakeRow:  # type: ignore[override]
        raise PromptTooLongError("more tokens than the model has positions", param="prompt")


@pytest.mark.parametrize(
    ("limits", "number"),
    [
        ({"max_prompt_tokens": 300}, 300),
        ({"max_batch_tokens": 200}, 200),
        ({"max_batch_tokens": 10**6, "max_prompt_tokens": 10**6}, 8192),
    ],
)
async def test_a_prompt_is_told_one_number_wherever_it_is_refused(limits: dict[str, Any], number: int) -> None:
    told = []
    for engine, prompt in (
        (FakeEngine(longest_token=1), "x" * 10_000),  # by its characters
        (ShortModel(), "x"),  # by the model
        (FakeEngine(), "x " * 10_000),  # by its tokens
    ):
        async with running(engine, max_queue_tokens=10**6, **limits) as server:
            response = await server.client.post("/v1/predict", json={"prompt": prompt})
        error = response.json()["error"]
        assert (error["code"], error["param"]) == ("prompt_too_long", "prompt")
        told.append(error["message"])
    assert all(str(number) in message for message in told)
    raised = next((f", or raise --{name.replace('_', '-')}" for name in limits if limits[name] == number), "")
    assert told[-1].endswith(f"expected at most {number}: shorten it{raised}")


class CountingEngine(FakeEngine):
    """Engine that counts the texts that it tokenises."""

    tokenised = 0

    async def pack(self, *args: object, **kwargs: object) -> FakeRow:  # type: ignore[override]
        self.tokenised += 1
        return await super().pack(*args, **kwargs)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"prompt": "x" * 980_000}, "prompt"),
        ({"messages": [{"role": "user", "content": "x" * 980_000}]}, "messages"),
        ({"prompt": "x", "choices": ["y", "x" * 980_000]}, "choices"),
    ],
)
async def test_what_has_more_characters_than_its_tokens_could_is_refused_unread(
    body: dict[str, object], param: str
) -> None:
    engine = CountingEngine(longest_token=81)
    async with running(engine) as server:
        response = await server.client.post("/v1/predict", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (413, "prompt_too_long", param)
    assert engine.tokenised == 0


async def test_white_space_around_a_prompt_does_not_make_it_long(server: Running) -> None:
    response = await server.client.post("/v1/predict", json={"prompt": "x" + " " * 900_000})
    assert response.status_code == 200


class StuckEngine(FakeEngine):
    """Engine whose gate holds the tokenising too, and that remembers the prompts in the order of their turns."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.tokenised: list[str] = []

    async def pack(self, *args: object, **kwargs: object) -> FakeRow:  # type: ignore[override]
        await self.gate.wait()
        row = await super().pack(*args, **kwargs)  # type: ignore[arg-type]
        self.tokenised.append(row.text)
        return row


@pytest.mark.parametrize("held", ["the tokenising", "the turn"])
async def test_a_text_that_is_not_tokenised_in_time_gets_504(held: str) -> None:
    engine = StuckEngine()
    async with running(engine, timeout_s=0.05) as server, AsyncExitStack() as stack:
        if held == "the tokenising":
            engine.gate.clear()
        else:
            await stack.enter_async_context(server.app.state.service.predictor()._tokenizer_queue.turn("another", 1))
        async with asyncio.timeout(5):
            late = await server.client.post("/v1/predict", json={"prompt": "x"})
        assert (late.status_code, late.json()["error"]["code"]) == (504, "deadline_exceeded")
        assert "not tokenised before its deadline" in late.json()["error"]["message"]
        engine.gate.set()


async def test_clients_of_one_adapter_take_turns_at_being_tokenised(tmp_path: Path) -> None:
    engine = StuckEngine()
    await flood(engine, tmp_path / "keys")
    assert [prompt for prompt in engine.tokenised if prompt != "rare"] == [f"flood{k}" for k in range(8)]
    assert "rare" in engine.tokenised[:3]
