"""Questions that the engine's base model cannot read."""

from pathlib import Path

import pytest
from transformers import PreTrainedTokenizerFast

from blora.config import PromptConfig
from blora.errors import AdapterError, PromptError
from tests.scenarios import CHAT_TEMPLATE, VOCAB_SIZE
from tests.server.engines.asking import CHOICES, Asking, write_adapter


def with_unknown_tokens(asking: Asking) -> PreTrainedTokenizerFast:
    """Return the engine's tokenizer, now with control tokens that the model has no embedding of, such as <|127|>."""
    tokenizer = asking.engine._loaded_base().tokenizer
    tokenizer.add_tokens([f"<|{n}|>" for n in range(VOCAB_SIZE)], special_tokens=True)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


async def test_a_token_without_an_embedding_is_refused(asking: Asking) -> None:
    """On a GPU, such a token ends all work of the process."""
    with_unknown_tokens(asking).chat_template = "<|127|>" + CHAT_TEMPLATE
    with pytest.raises(PromptError, match=r"got token '<\|127\|>', .* mend the base model's chat template") as refused:
        await asking.engine.pack(
            asking.one, prompt=None, messages=[{"role": "user", "content": "why"}], choices=CHOICES, scoring=None
        )
    assert refused.value.param == "messages"
    assert len(await asking.probabilities("why")) == 4


async def test_an_adapter_whose_template_has_one_is_not_loaded(asking: Asking, folder: Path, tmp_path: Path) -> None:
    prompt = PromptConfig(choices=CHOICES, template="<|127|>{prompt}")
    adapter = write_adapter(tmp_path / "three", folder / "tiny", seed=3, prompt=prompt)
    with_unknown_tokens(asking)
    with pytest.raises(AdapterError, match=r"got adapter 'three', whose prompt has the token '<\|127\|>'"):
        await asking.engine.load_adapter(adapter, "three")
