"""The part that both engines share: a loaded base model, and threads that pack questions for it."""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar, cast

from blora.base_model import BaseModel
from blora.config import ScoringName
from blora.errors import PromptError
from blora.inference.packing import PackedRow, pack
from blora.server.engines.handle import AdapterHandle
from blora.server.scheduling.turns import to_the_end

__all__ = ["PackingEngine", "in_thread"]

T = TypeVar("T")


async def in_thread(executor: ThreadPoolExecutor, work: Callable[[], T]) -> T:
    """Run a function in a thread of the executor and return its result."""
    return await asyncio.get_running_loop().run_in_executor(executor, work)


class PackingEngine:
    """Base class of the engines.

    Args:
        packing: threads that pack questions.
    """

    lost: str | None = None

    def __init__(self, packing: ThreadPoolExecutor) -> None:
        self._packing = packing
        self._base: BaseModel | None = None
        self._max_length = 0

    async def pack(
        self,
        handle: AdapterHandle,
        *,
        prompt: str | None,
        messages: list[dict[str, str]] | None,
        choices: Sequence[str],
        scoring: str | None,
    ) -> PackedRow:
        """Implement Engine."""
        base = self._loaded_base()
        packing = partial(
            pack,
            base.tokenizer,
            prompt=prompt,
            messages=messages,
            choices=choices,
            config=handle.config.prompt,
            scoring=cast(ScoringName | None, scoring),
            max_length=self._max_length,
            encoder=base.is_encoder,
        )
        row = await to_the_end(self._packing, packing)
        if (unknown := self._unknown_token(row)) is not None:
            at_fault = "adapter's template" if messages is None else "base model's chat template"
            raise PromptError(
                f"got token {unknown!r}, which the base model has no embedding of, expected tokens that it knows: mend "
                f"the {at_fault}",
                param="prompt" if messages is None else "messages",
            )
        return row

    def _unknown_token(self, row: PackedRow) -> str | None:
        """Return a token of a row's prompt without an embedding, which would end a GPU's work for good, or None.

        Templates may have such tokens; in a question, control tokens are plain text.
        """
        base = self._loaded_base()
        largest, n_known = max(row.prompt), len(next(base.model.get_input_embeddings().parameters()))
        return str(base.tokenizer.convert_ids_to_tokens(largest)) if largest >= n_known else None

    def _loaded_base(self) -> BaseModel:
        if self._base is None:
            raise RuntimeError("got work before load() returned, expected it afterwards")
        return self._base
