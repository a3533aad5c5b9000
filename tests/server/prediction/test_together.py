"""Questions of one request: the meeting, and the text that they share."""

import asyncio

from blora.inference.prefix import MIN_PREFIX
from blora.server.monitoring.recent_texts import AskedText
from blora.server.prediction.together import Text, Together

BEGINNING = tuple(range(MIN_PREFIX))


async def met(*prompts: tuple[str, tuple[int, ...]], beginnings: bool = True) -> list[Text | None]:
    """Return what questions share, given the reading and the tokens of each."""
    together = Together(len(prompts), about=AskedText(""), beginnings=beginnings)

    async def ask(reading: str, prompt: tuple[int, ...]) -> Text | None:
        with together.expected() as member:
            return await member.meet(reading, prompt)

    return list(await asyncio.gather(*(ask(reading, prompt) for reading, prompt in prompts)))


async def test_questions_of_one_reading_share_what_all_their_prompts_begin_with() -> None:
    first, second, other, alone = await met(
        ("a", (*BEGINNING, 1, 2)), ("a", (*BEGINNING, 1, 3, 4)), ("b", (*BEGINNING, 1, 2)), ("a", ())
    )
    assert first == second
    assert first is not None
    assert first.n_tokens == MIN_PREFIX + 1
    assert other is None
    assert alone is None  # read in passes of its own


async def test_equal_prompts_share_all_but_a_token_and_short_beginnings_nothing() -> None:
    one, _ = await met(("a", (*BEGINNING, 1)), ("a", (*BEGINNING, 1)))
    assert one is not None
    assert one.n_tokens == MIN_PREFIX
    assert await met(("a", (1, 2, 3)), ("a", (1, 2, 4))) == [None, None]


async def test_where_beginnings_are_not_remembered_only_equal_prompts_are_shared() -> None:
    one, _ = await met(("a", (*BEGINNING, 1)), ("a", (*BEGINNING, 1)), beginnings=False)
    assert one is not None
    assert await met(("a", (*BEGINNING, 1)), ("a", (*BEGINNING, 2)), beginnings=False) == [None, None]


async def test_questions_of_two_readings_share_no_text_with_each_other() -> None:
    prompts = (*BEGINNING, 1), (*BEGINNING, 2)
    one, _, other, _ = await met(*(("a", prompt) for prompt in prompts), *(("b", prompt) for prompt in prompts))
    assert one is not None
    assert other is not None
    assert one.key != other.key


async def test_questions_of_two_requests_share_nothing() -> None:
    [one, _], [other, _] = [await met(("a", (*BEGINNING, 1)), ("a", (*BEGINNING, 2))) for _ in range(2)]
    assert one is not None
    assert other is not None
    assert one.key != other.key


async def test_a_question_that_fails_before_the_meeting_keeps_no_other() -> None:
    together = Together(2, about=AskedText(""), beginnings=True)

    async def fail() -> None:
        with together.expected():
            raise ValueError

    async def ask() -> Text | None:
        with together.expected() as member:
            return await member.meet("a", BEGINNING)

    async with asyncio.timeout(5):
        found = await asyncio.gather(ask(), fail(), return_exceptions=True)
    assert found[0] is None
    assert isinstance(found[1], ValueError)
