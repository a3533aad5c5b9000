"""Predictions of a head from the states that a running vLLM returns, for a calibration that holds for its engine."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from blora.adapter import Adapter
from blora.base_model import BaseModel
from blora.errors import AdapterError, ConfigError
from blora.posterior.decision_head import Features, HeadDraws
from blora.training.evaluate import predict_all
from blora.training.progress import rows_bar
from blora.training.rows.packed import LabelledRow
from blora.vllm.client import VllmClient, VllmError, check_address
from blora.vllm.loras import lora_folder, lora_name, n_loras, write_loras
from blora.vllm.states import check_readable, check_same_states, read_log_probs, states_of

__all__ = ["Vllm", "check_vllm", "predict_through_vllm"]

TIMEOUT_S = 600.0
# Rows that are asked at once, of which the first are compared with what is computed here.
AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class Vllm:
    """A running vLLM that returns states.

    Attributes:
        url: its address.
        folder: a folder that vLLM sees under the same path, for the LoRA below a head; None without such a LoRA.
    """

    url: str
    folder: Path | None = None


def predict_through_vllm(
    vllm: Vllm, adapter: Adapter, base: BaseModel, rows: Sequence[LabelledRow], draws: HeadDraws
) -> tuple[Tensor, Tensor | None]:
    """Return what `blora.training.evaluate.predict_with_distances` returns, from states of vLLM's.

    Args:
        vllm: the running vLLM.
        adapter: an adapter with a head on the last layer's states, attached to the base model.
        base: the base model, which vLLM has to serve too.
        rows: N >= 1 labelled rows.
        draws: S draws of the head.

    Raises:
        AdapterError: if vLLM does not return the states that the head reads, or those of another model.
        ConfigError: if vLLM does not answer, or the LoRA below the head needs a folder.
    """
    expected = _states_here(base, rows[:AT_ONCE], draws)
    try:
        return asyncio.run(_predict(vllm, adapter, base, rows, draws, expected))
    except (OSError, VllmError) as exc:
        raise ConfigError(f"vLLM cannot compute the states of the rows: {exc}") from exc


def check_vllm(vllm: Vllm, adapter: Adapter, base: BaseModel) -> None:
    """Check vLLM's address, and that an adapter has a head on what vLLM returns, and a folder for a LoRA below it.

    Raises:
        AdapterError: if it has no such head.
        ConfigError: if the address is malformed, or the folder is missing.
    """
    check_address(vllm.url)
    if adapter.config.head is None:
        raise AdapterError(
            f"got adapter {adapter.name!r} without a head, of which each draw takes requests of its own, expected one "
            "with a head, from --depths last: leave --engine-url out"
        )
    check_readable(adapter.name, adapter.config.head, base)
    if n_loras(adapter.config) and vllm.folder is None:
        raise ConfigError(
            "got no --engine-folder for the LoRA below the head, expected a folder that vLLM sees under the same path"
        )


def _states_here(base: BaseModel, rows: Sequence[LabelledRow], draws: HeadDraws) -> Tensor:
    """Return the mean states (R, F) of rows' prompts, as computed here."""
    states: list[Tensor] = [torch.empty(0)] * len(rows)

    def keep(places: Sequence[int], features: Features) -> None:
        assert features.prompt is not None  # a head reads it
        for place, prompt in zip(places, features.prompt, strict=True):
            states[place] = prompt

    predict_all(base.model, rows, draws.first(1), about="comparing", read=keep)
    return torch.stack(states)


async def _predict(
    vllm: Vllm, adapter: Adapter, base: BaseModel, rows: Sequence[LabelledRow], draws: HeadDraws, expected: Tensor
) -> tuple[Tensor, Tensor | None]:
    """Return log-probabilities (S, N, C), and distances (N,), if the first R rows have the expected states (R, F)."""
    draws = draws.to(base.device)
    familiarity = adapter.familiarity.to(base.device) if adapter.familiarity is not None else None
    found = torch.full((draws.n_samples, len(rows), max(row.row.n_choices for row in rows)), -torch.inf)
    distances = torch.zeros(len(rows)) if familiarity is not None else None
    first = torch.zeros_like(expected)
    client = VllmClient(vllm.url, timeout_s=TIMEOUT_S, concurrency=AT_ONCE)
    try:
        model = await _model(client, vllm, adapter, base)

        async def read(place: int) -> None:
            row = rows[place].row
            states = await states_of(client, model, row, draws.head.config)
            log_probs, features = read_log_probs(base, draws, replace(row, states=states))
            found[:, place, : row.n_choices] = log_probs.cpu()
            assert features.prompt is not None  # a head reads it
            if familiarity is not None and distances is not None:
                distances[place] = familiarity.distance(features.prompt, features.choices())[0]
            if place < len(first):
                first[place] = features.prompt[0]

        compared = -1
        with rows_bar(len(rows), "calibrating") as bar:
            for start in range(0, len(rows), AT_ONCE):
                places = range(start, min(start + AT_ONCE, len(rows)))
                await asyncio.gather(*map(read, places))
                if client.connections != compared:  # at first, and after connections that may lead to another model
                    compared = client.connections
                    await asyncio.gather(*map(read, range(len(first))))
                    check_same_states(first, expected, adapter.name, base)
                bar.update(len(places))
        return found, distances
    finally:
        await client.close()


async def _model(client: VllmClient, vllm: Vllm, adapter: Adapter, base: BaseModel) -> str:
    """Return the name in vLLM of the LoRA below the head, which is loaded, or of the base model."""
    if not n_loras(adapter.config):
        name, _ = await client.base_model()
        return name
    assert vllm.folder is not None  # see `check_vllm`
    write_loras(adapter, base, vllm.folder)
    name = lora_name(adapter.digest, 0)
    await client.load(name, lora_folder(vllm.folder, adapter.digest, 0))
    return name
