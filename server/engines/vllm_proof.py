"""The proof that vLLM gives an adapter's answers: some questions, answered there as they are here.

It is taken when an adapter is loaded, and again whenever connections to vLLM are new: a vLLM that was started again may
serve another model under the same names.
"""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

import torch
from torch import Tensor

from blora.base_model import BaseModel
from blora.decision.calibration import VLLM
from blora.errors import AdapterError, PromptTooLongError
from blora.inference.branches import score_all
from blora.inference.packing import PackedRow
from blora.posterior.decision_head import Features
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import probe_row
from blora.server.engines.outcomes import probabilities
from blora.server.engines.protocol import Job
from blora.vllm.states import check_same_states

__all__ = ["Proof", "answer_of", "proof_of"]

# Ordinary questions, since one alone may be answered alike by another model.
QUESTIONS = (
    "Is this a question?",
    "I was charged twice for the same month, and nobody has answered my letters so far.",
    "The old bridge was closed in winter; which way do the buses take now?",
)
# Largest difference of a probability between vLLM and this process, under the same draw, that rounding explains.
TOLERANCE = 0.1


@dataclass(frozen=True, slots=True)
class Proof:
    """Questions, and the answers to them under an adapter's first draw, as computed here.

    Attributes:
        rows: R rows.
        probs: recalibrated probabilities (C,) of each row.
        states: (R, F) the mean states of the prompts; None without a head.
    """

    rows: tuple[PackedRow, ...]
    probs: tuple[Tensor, ...]
    states: Tensor | None

    def short(self) -> "Proof":
        """Return the part to prove again: one question if there is a head, whose states alone tell models apart."""
        return Proof(self.rows[:1], self.probs[:1], self.states[:1]) if self.states is not None else self

    def check(self, probs: Sequence[Tensor], states: Tensor | None, name: str, base: BaseModel) -> None:
        """Check what vLLM answered.

        Args:
            probs: as the attribute.
            states: as the attribute.
            name: the adapter's name, for the message.
            base: the base model.

        Raises:
            AdapterError: if they differ by more than rounding explains.
        """
        apart = max(float((one - other).abs().max()) for one, other in zip(probs, self.probs, strict=True))
        if not apart <= TOLERANCE:
            raise AdapterError(
                f"The probabilities of adapter {name!r} from vLLM differ by {apart:.2f} from those computed here, "
                f"where at most {TOLERANCE} is allowed: let vLLM serve the same base model ({base.ref.id})"
            )
        if self.states is not None and states is not None:
            check_same_states(states, self.states, name, base)


@torch.inference_mode()
def proof_of(base: BaseModel, handle: AdapterHandle, max_length: int) -> Proof:
    """Return an adapter's proof, computed here; the adapter is attached to the base model."""
    rows = tuple(_fitting_rows(base, handle, max_length))
    states: list[Tensor] = []

    def keep(places: Sequence[int], features: Features) -> None:
        assert features.prompt is not None  # a head reads it
        states.append(features.prompt)

    found = [
        score_all(base.model, [row], handle.bank.first(1), max_batch_tokens=row.n_tokens, read=keep)[0, 0]
        for row in rows
    ]
    probs = tuple(answer_of(handle, row, one) for row, one in zip(rows, found, strict=True))
    return Proof(rows, probs, torch.cat(states) if states else None)


def _fitting_rows(base: BaseModel, handle: AdapterHandle, max_length: int) -> Iterator[PackedRow]:
    """Yield the questions as rows: the first, which has to fit into the model's length, and the others that fit."""
    yield probe_row(base, handle, max_length, QUESTIONS[0])
    for question in QUESTIONS[1:]:
        with suppress(PromptTooLongError):
            yield probe_row(base, handle, max_length, question)


def answer_of(handle: AdapterHandle, row: PackedRow, log_probs: Tensor) -> Tensor:
    """Return the recalibrated probabilities (C,) of a row from log-probabilities (C,) under one draw."""
    return probabilities(Job(handle, row, 1, None, None), log_probs[None], VLLM)[0]
