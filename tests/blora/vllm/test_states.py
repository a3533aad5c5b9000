"""States from vLLM: the texts of a question that fails."""

import asyncio
from typing import Any

import pytest

from blora.config import HeadConfig
from blora.inference.packing import PackedRow
from blora.vllm.client import VllmError
from blora.vllm.states import states_of


async def test_the_other_texts_of_a_question_that_failed_are_called_off() -> None:
    ended: list[int] = []

    class Slow:
        async def states(self, model: str, text: tuple[int, ...], width: int, sending: Any) -> Any:
            if len(text) == 4:
                raise VllmError("no such LoRA")
            await asyncio.sleep(0.1)
            ended.append(len(text))

    row = PackedRow(prompt=(1, 2), continuations=((3, 4), (5, 6, 7), (8, 9, 10, 11)), normalization="none")
    head = HeadConfig(depths=(2,), n_states=8, n_directions=4)
    client: Any = Slow()
    with pytest.raises(VllmError):
        await states_of(client, "base", row, head)
    await asyncio.sleep(0.3)
    assert ended == []
