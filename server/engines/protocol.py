"""The protocol of engines, and the jobs that they compute."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from torch import Tensor

from blora.decision.abstention import Policy
from blora.decision.stopping import looks
from blora.errors import AdapterError
from blora.inference.packing import PackedRow
from blora.server.engines.handle import AdapterHandle
from blora.server.scheduling.control import Control

__all__ = ["Engine", "EngineUnavailableError", "Job", "Loaded", "ModelInfo", "Outcome", "Stop"]

# Cost in tokens of one draw outside the adapter's bank: making it, and giving a row its own draws in the forward pass.
# Measured as 8 to 46 tokens with the demo, depending on the load of the processor.
_FRESH_DRAW_TOKENS = 32
# The same for a draw of a head's weights.
_FRESH_HEAD_TOKENS = 1
# Weights whose draw takes as long as a token's pass through the embedded base model.
_WEIGHTS_PER_TOKEN = 80_000


class EngineUnavailableError(AdapterError):
    """An adapter that the engine cannot load at the moment, for lack of memory or of a connection."""


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """The base model that an engine runs.

    Attributes:
        name: short name, as in answers.
        id: hub id, path or file name.
        revision: revision of the hub id, if there is one.
        fingerprint: fingerprint of its weights.
        companion: hub id, path or file name of its companion; None without one.
        device: device that it runs on.
        dtype: precision that it runs in.
        max_length: most positions of a row.
        longest_token: length of the longest token, in characters.
        runs_whole_because: reason why every layer runs for every draw; None if shared layers run once per question.
    """

    name: str
    id: str
    revision: str | None
    fingerprint: str
    companion: str | None
    device: str
    dtype: str
    max_length: int
    longest_token: int
    runs_whole_because: str | None


@dataclass(frozen=True, slots=True)
class Loaded:
    """The base model and the adapters that an engine has loaded."""

    model: ModelInfo
    adapters: tuple[AdapterHandle, ...]


@dataclass(frozen=True, slots=True)
class Stop:
    """Condition under which a job ends before all of its draws are made.

    Attributes:
        policy: the policy whose decision has to be settled.
        error: accepted probability that the decision differs from the decision under all draws.
    """

    policy: Policy
    error: float


@dataclass(frozen=True, slots=True)
class Job:
    """One row to score under S draws of one adapter.

    Attributes:
        handle: the adapter.
        row: the question and its choices.
        n_samples: S.
        seed: seed of fresh draws; None for the adapter's bank.
        stop: condition for stopping early; None for never.
        client: name of the key that asked; None without keys.
    """

    handle: AdapterHandle
    row: PackedRow
    n_samples: int
    seed: int | None
    stop: Stop | None
    client: str | None = None

    @property
    def kind(self) -> Literal["draws", "head", "below head"]:
        """Kind of the computation: passes under draws of a LoRA, one pass for a head, or one pass without the head."""
        if self.handle.config.head is None:
            return "draws"
        return "below head" if self.row.readout == "scores" else "head"

    @property
    def as_trained(self) -> bool:
        """Return whether the row is read and scored as the adapter's training rows were."""
        prompt = self.handle.config.prompt
        return (self.row.scoring, self.row.readout) == (prompt.scoring, prompt.readout)

    @property
    def draws_differ(self) -> bool:
        """Return whether a posterior scores the choices; a LoRA below a head, or trained without one, has none."""
        return self.kind == "head" or self.handle.config.posterior.method != "lora"

    @property
    def at_once(self) -> int:
        """Draws made before the first check of the stopping condition; all draws without a condition."""
        return looks(self.n_samples)[0] if self.stop is not None else self.n_samples

    @property
    def in_bank(self) -> bool:
        """Return whether the adapter's bank holds the job's draws."""
        bank = self.handle.bank
        return self.seed in (None, bank.seed) and self.n_samples <= bank.n_samples

    @property
    def passes(self) -> int:
        """Draws that need a forward pass each before the first check of the stopping condition."""
        return self.at_once if self.kind == "draws" else 1

    @property
    def most_passes(self) -> int:
        """Draws that need a forward pass each if the condition is never met."""
        return self.n_samples if self.kind == "draws" else 1

    @property
    def overhead(self) -> int:
        """Cost of making the draws, as the number of tokens x draws that take equally long."""
        if self.in_bank:
            return 0
        per_draw = _FRESH_DRAW_TOKENS if self.kind == "draws" else _FRESH_HEAD_TOKENS
        return (per_draw + self.handle.bank.n_weights // _WEIGHTS_PER_TOKEN) * self.n_samples

    @property
    def group(self) -> tuple[str, int, int]:
        """Key of the jobs that may share a forward pass, whatever their adapters and seeds."""
        return self.kind, self.n_samples, self.at_once


@dataclass(frozen=True, slots=True)
class Outcome:
    """Result of a job.

    Attributes:
        probs: (s, C) recalibrated probabilities under the job's first s draws, without guesses.
        familiarity: conformal p-value of the question; None for an adapter without a familiarity.
        cached_tokens: tokens of the prompt that the same client's earlier prompts had left computed.
        guesses: share of guesses in the answer, above 0 for a question far from every reference row.
    """

    probs: Tensor
    familiarity: float | None = None
    cached_tokens: int = 0
    guesses: float = 0.0


class Engine(Protocol):
    """A base model and its adapters. Of several `run` calls in progress, all but one wait at a checkpoint.

    Attributes:
        fresh_draws: whether the engine can make draws beyond an adapter's bank: more draws, or draws of another seed.
        lost: error message of a device that computes nothing any more in this process, or None.
    """

    fresh_draws: bool
    lost: str | None

    async def load(self) -> Loaded:
        """Load the base model and the adapters, and test each adapter with a forward pass.

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
    ) -> PackedRow:
        """Tokenise and pack a question.

        Raises:
            PromptError: naming the field that cannot be packed.
        """

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        """Compute the probabilities (s, C) of each job under its first s draws, and the familiarity of its question.

        s is S, unless the job has a stopping condition or nobody wants its result any more. Probabilities are not
        finite where the model's output is not. All jobs belong to one group. Each job gets the numbers that it would
        get alone, within the tolerance of the dtype.

        Args:
            jobs: the jobs to compute.
            control: asked at least between forward passes whether to go on; None always goes on.

        Raises:
            AbandonedError: if the control says that no result is wanted any more.
            UnavailableError: if what computes cannot be reached, whatever the jobs.
        """

    async def load_adapter(self, path: Path, name: str) -> AdapterHandle:
        """Load a further adapter and test it with a short forward pass; only that pass delays other work.

        Raises:
            StalledError: if the adapter's files cannot be read in time.
            EngineUnavailableError: if the engine has no memory for it, or no connection to what computes.
            BloraError: if it is not an adapter of this base model, or exceeds a limit of memory, draws or tokens.
        """

    async def forget(self, handle: AdapterHandle) -> None:
        """Release everything that is kept for an adapter beside its handle."""

    async def probe(self) -> None:
        """Run one small forward pass and raise its exception if it fails."""

    async def close(self) -> None:
        """Shut the threads down; nothing runs afterwards."""
