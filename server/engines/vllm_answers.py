"""Answers of a running vLLM about packed rows, under the LoRAs of adapters; lost LoRAs are loaded again."""

import asyncio
from collections.abc import Callable, Coroutine, Hashable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

from blora.inference.packing import PackedRow, States
from blora.server.engines.handle import AdapterHandle
from blora.vllm.client import Sending, UnknownLoraError, VllmClient
from blora.vllm.loras import lora_folder, lora_name, n_loras
from blora.vllm.states import states_of

__all__ = ["Reads", "VllmAnswers", "is_asked_alone"]

T = TypeVar("T")

# The texts that a run has begun to read, by LoRA and tokens, so that several questions about one read it once.
Reads = dict[Hashable, asyncio.Task[States]]


class VllmAnswers:
    """The answers of one vLLM.

    Args:
        vllm: the client.
        folder: the folder of the LoRAs, which vLLM sees under the same path.
    """

    def __init__(self, vllm: VllmClient, folder: Path) -> None:
        self._vllm = vllm
        self._folder = folder
        self.base_name = ""
        """Name of the base model in vLLM."""

    async def load(self, digest: str, s: int) -> None:
        """Load a LoRA of the adapter with a digest."""
        await self._vllm.load(lora_name(digest, s), lora_folder(self._folder, digest, s))

    async def log_probs(self, handle: AdapterHandle, row: PackedRow, s: int, sending: Sending) -> Tensor:
        """Return the log-probabilities (C,) under one draw of a LoRA, normalised over the choices.

        Args:
            handle: an adapter without a head.
            row: the row.
            s: the draw.
            sending: entered before each request and left after it; an exception that it raises cancels the request.
        """
        totals = await self._under_lora(handle, s, partial(self._totals, lora_name(handle.digest, s), row, sending))
        return (torch.tensor(totals) / torch.tensor(row.divisors)).log_softmax(-1)

    async def read(self, handle: AdapterHandle, row: PackedRow, sending: Sending, reads: Reads) -> PackedRow:
        """Return a row with its states.

        Args:
            handle: an adapter with a head.
            row: the row.
            sending: as for `log_probs`.
            reads: what the run has begun to read, to which this is added.
        """
        head, model = handle.config.head, lora_name(handle.digest, 0) if n_loras(handle.config) else self.base_name
        assert head is not None  # see above
        key = model, row.prompt, row.continuations
        if key not in reads:
            asking = partial(states_of, self._vllm, model, row, head, sending)
            reads[key] = asyncio.create_task(self._under_lora(handle, 0, asking))
        return replace(row, states=await reads[key])

    async def _under_lora(self, handle: AdapterHandle, s: int, ask: Callable[[], Coroutine[None, None, T]]) -> T:
        """Return what is asked under a LoRA; vLLM is given the LoRA again if it has none of that name."""
        try:
            return await ask()
        except UnknownLoraError:  # vLLM was restarted, or another server unloaded the LoRA
            if s >= n_loras(handle.config):
                raise
            await self.load(handle.digest, s)
            return await ask()

    async def _totals(self, lora: str, row: PackedRow, sending: Sending) -> list[float]:
        """Return the log-probability of each choice's tokens under one draw."""
        if is_asked_alone(row):
            return [await self._vllm.continuation(lora, row.prompt, tokens, sending) for tokens in row.continuations]
        return await self._vllm.next_token(lora, row.prompt, [token for (token,) in row.continuations], sending)


def is_asked_alone(row: PackedRow) -> bool:
    """Return whether the requests about a row without a head have none beside them: choices of several tokens."""
    return any(len(tokens) > 1 for tokens in row.continuations)
