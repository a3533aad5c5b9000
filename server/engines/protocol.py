"""What the server asks of whatever computes the probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from torch import Tensor

from blora.config import ScoringName
from blora.decision.abstention import Policy
from blora.decision.stopping import looks
from blora.server.engines.handle import AdapterHandle
from blora.server.scheduling.control import Control

__all__ = ["Engine", "Job", "Loaded", "ModelInfo", "Row", "Stop"]

# Making a draw that the adapter has not ready, and giving a row draws of its own in the forward pass, takes as long as
# so many tokens do: 8 to 46 with the demo, by what else the processor does.
_FRESH_DRAW_TOKENS = 32


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The base model that an engine runs.

    Attributes:
        name: short, as in answers.
        id: where it came from, with its revision if that has one.
        fingerprint: of its weights.
        max_length: the most positions that a row may have.
        runs_whole_because: why every layer is computed for every draw; None where shared layers run once a question.
    """

    name: str
    id: str
    revision: str | None
    fingerprint: str
    device: str
    dtype: str
    max_length: int
    runs_whole_because: str | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """What an engine has ready."""

    model: ModelInfo
    adapters: tuple[AdapterHandle, ...]


class Row(Protocol):
    """A question and its choices as tokens; only the engine looks deeper."""

    @property
    def n_tokens(self) -> int:
        """Length of the packed row: the prompt's tokens first, then those of the choices that are read."""

    @property
    def prompt_tokens(self) -> int:
        """Tokens of the question."""

    @property
    def scored_tokens(self) -> int:
        """Tokens of the choices."""

    @property
    def n_choices(self) -> int:
        """C."""

    @property
    def scoring(self) -> ScoringName:
        """How its choices are scored."""

    @property
    def choices(self) -> tuple[str, ...]:
        """The texts of the choices, without white space at their ends."""

    @property
    def shadowed(self) -> tuple[str, str] | None:
        """A choice, and the one that it begins with, which always has the higher probability; None where none does."""


@dataclass(frozen=True, slots=True)
class Stop:
    """What ends a job before all of its draws are seen.

    Attributes:
        policy: which way this will decide.
        error: the probability that may be risked of deciding otherwise than all draws would.
    """

    policy: Policy
    error: float


@dataclass(frozen=True, slots=True)
class Job:
    """One row to score under S draws of one adapter.

    Attributes:
        seed: of fresh draws; None for the adapter's own bank.
        stop: when fewer draws suffice; None for never.
    """

    handle: AdapterHandle
    row: Row
    n_samples: int
    seed: int | None
    stop: Stop | None

    @property
    def at_once(self) -> int:
        """Draws that are made before anything is looked at: all, or as many as the first look takes."""
        return looks(self.n_samples)[0] if self.stop is not None else self.n_samples

    @property
    def in_bank(self) -> bool:
        """Return whether its draws are among those that its adapter has ready."""
        bank = self.handle.bank
        return self.seed in (None, bank.seed) and self.n_samples <= bank.n_samples

    @property
    def overhead(self) -> int:
        """What its draws cost beside its row, as tokens x draws that take as long."""
        return 0 if self.in_bank else _FRESH_DRAW_TOKENS * self.n_samples

    @property
    def group(self) -> tuple[int, int]:
        """Jobs that are equal in this may share a forward pass, whatever their adapters and seeds."""
        return self.n_samples, self.at_once


class Engine(Protocol):
    """A base model and its adapters. Of several calls of `run` under way all but one wait at a checkpoint.

    Attributes:
        fresh_draws: whether it can make draws beyond an adapter's own bank, of another seed or more of them.
        longest_token: most characters of a token, once the base model is loaded.
    """

    fresh_draws: bool
    longest_token: int

    async def load(self) -> Loaded:
        """Loads everything and proves it with a forward pass of every adapter.

        Raises:
            BloraError: with a message for the operator.
        """

    async def pack(
        self,
        handle: AdapterHandle,
        *,
        prompt: str | None,
        messages: list[dict[str, str]] | None,
        choices: Sequence[str],
        scoring: str | None,
    ) -> Row:
        """The question as tokens.

        Raises:
            PromptError: naming the field that cannot be packed.
        """

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Tensor]:
        """Probabilities (s, C) of each job under its first s draws; not finite where the model's are not.

        All draws are made, s = S, unless the job says when to stop, or nobody wants it any more. All jobs belong to one
        group. Each gets the numbers that it would get alone, within the tolerance of the dtype.

        Args:
            jobs: what to compute.
            control: is asked between forward passes, or more often, whether to go on; None goes on.

        Raises:
            AbandonedError: if the control says that nobody wants anything of it any more.
        """

    async def load_adapter(self, path: Path, name: str) -> AdapterHandle:
        """One more adapter, proved with a short forward pass; only that pass holds up others.

        Raises:
            StalledError: if its files cannot be read in time.
            BloraError: if it is none, not one of this base model, or takes more memory, draws or tokens than it may.
        """

    async def forget(self, handle: AdapterHandle) -> None:
        """Lets go of what is kept for an adapter beyond its handle."""

    async def probe(self) -> None:
        """Runs one small forward pass; raises if that fails."""

    async def close(self) -> None:
        """Lets go of the threads; nothing runs afterwards."""
