"""Order of tokenising, and texts that are refused without it."""

import asyncio
from typing import Any

import pytest

from blora.errors import PromptTooLongError
from blora.server.engines.jobs import longest_token
from blora.server.errors import QueueFullError, TooLargeError
from blora.server.prediction.tokenizing import Lengths, TokenizerQueue
from blora.server.schemas.requests import PredictRequest
from tests.scenarios import tiny_tokenizer
from tests.server.fakes import FakeEngine, FakeRow, Running, running

LENGTHS = Lengths(prompt=10, row=12, longest_token=5)
CHOICES = ("a", "b")


class Order:
    """Recorder of the order of tokenising, one step of the loop at a time."""

    def __init__(self, tokenizing: TokenizerQueue) -> None:
        self.tokenizing = tokenizing
        self.done: list[str] = []
        self.gate = asyncio.Event()

    async def one(self, name: str, owner: str, characters: int) -> None:
        async with self.tokenizing.turn(owner, characters):
            await self.gate.wait()
            self.done.append(name)


def tokenizing(max_inputs: int = 100, max_characters: int = 10**9) -> TokenizerQueue:
    return TokenizerQueue(max_inputs=max_inputs, max_characters=max_characters)


async def started(*waiting: "asyncio.Task[None]") -> None:
    for _ in range(3):
        await asyncio.sleep(0)
    assert not any(task.done() for task in waiting)


async def test_forty_long_texts_of_one_owner_let_another_owners_short_one_go_second() -> None:
    order = Order(tokenizing())
    flood = [asyncio.create_task(order.one(f"flood {i}", "one", 980_000)) for i in range(40)]
    await started(*flood)
    asked = asyncio.create_task(order.one("asked", "other", 50))
    await started(asked)
    order.gate.set()
    await asyncio.gather(*flood, asked)
    assert order.done.index("asked") == 1
    assert len(order.done) == 41


async def test_who_left_is_not_tokenised() -> None:
    order = Order(tokenizing())
    tasks = [asyncio.create_task(order.one(str(i), "one", 10)) for i in range(3)]
    await started(*tasks)
    tasks[1].cancel()
    await asyncio.gather(tasks[1], return_exceptions=True)
    order.gate.set()
    await asyncio.gather(tasks[0], tasks[2])
    assert order.done == ["0", "2"]


async def test_who_leaves_while_being_tokenised_lets_the_next_go() -> None:
    order = Order(tokenizing())
    tasks = [asyncio.create_task(order.one(str(i), "one", 10)) for i in range(2)]
    await started(*tasks)
    tasks[0].cancel()
    order.gate.set()
    await asyncio.gather(*tasks, return_exceptions=True)
    assert order.done == ["1"]


@pytest.mark.parametrize(("max_inputs", "max_characters"), [(10, 10**9), (100, 1000)])
async def test_one_owner_holds_four_fifths_of_the_room_at_most(max_inputs: int, max_characters: int) -> None:
    order = Order(tokenizing(max_inputs, max_characters))
    flood = [asyncio.create_task(order.one("flood", "one", 100)) for _ in range(30)]
    for _ in range(3):
        await asyncio.sleep(0)
    refused = [task for task in flood if task.done()]
    assert len(flood) - len(refused) == 9  # one that is tokenised, and eight that wait
    for task in refused:
        assert isinstance(task.exception(), QueueFullError)
    asked = asyncio.create_task(order.one("asked", "other", 100))
    await started(asked)
    order.gate.set()
    await asyncio.gather(asked, *(task for task in flood if task not in refused))


async def test_a_text_that_is_longer_than_the_whole_room_waits_alone() -> None:
    order = Order(tokenizing(max_characters=10))
    tasks = [asyncio.create_task(order.one(str(i), str(i), 100)) for i in range(2)]
    await started(*tasks)
    with pytest.raises(QueueFullError, match="try again"):
        await order.one("2", "2", 100)
    order.gate.set()
    await asyncio.gather(*tasks)


async def test_retry_after_follows_the_measured_speed() -> None:
    now = iter([0.0, 20.0, 20.0])
    waiting = TokenizerQueue(max_inputs=1, max_characters=10**6, clock=lambda: next(now))
    async with waiting.turn("one", 1000):  # 0.02 s a character
        pass
    order = Order(waiting)
    tasks = [asyncio.create_task(order.one(str(i), "one", 500)) for i in range(2)]
    await started(*tasks)
    with pytest.raises(QueueFullError) as info:
        await order.one("late", "other", 1)
    assert info.value.retry_after_s == 10
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


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
        ("w " * 9, ("x y z", "x y w"), "prompt", "a prompt of 9 tokens, expected at most 8 beside these choices"),
        ("w", ("x " * 8, "y " * 8), "choices", "choices of 16 tokens, expected at most 13 beside this prompt"),
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
