"""Questions that the engine's base model cannot read."""

import pytest

from blora.errors import PromptError
from tests.scenarios import CHAT_TEMPLATE, VOCAB_SIZE
from tests.server.engines.asking import CHOICES, Asking


async def test_a_token_without_an_embedding_is_refused(asking: Asking) -> None:
    """On a GPU, such a token ends all work of the process."""
    tokenizer = asking.engine._loaded_base().tokenizer
    added = [f"<|{n}|>" for n in range(VOCAB_SIZE)]
    tokenizer.add_tokens(added, special_tokens=True)
    tokenizer.chat_template = added[-1] + CHAT_TEMPLATE
    with pytest.raises(
        PromptError, match=r"got token '<\|127\|>', which the base model has no embedding of"
    ) as refused:
        await asking.engine.pack(
            asking.one, prompt=None, messages=[{"role": "user", "content": "why"}], choices=CHOICES, scoring=None
        )
    assert refused.value.param == "messages"
    assert len(await asking.probabilities("why")) == 4
