"""A fake engine whose probabilities are a known function of the question, and apps around it."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import torch
from fastapi import FastAPI
from torch import Tensor

from blora.config import (
    AdapterConfig,
    BaseModelRef,
    PosteriorConfig,
    PromptConfig,
    QuestionConfig,
    SamplingConfig,
)
from blora.decision.abstention import Policy
from blora.decision.calibration import Calibration
from blora.decision.familiarity import Familiarity
from blora.errors import AdapterError, PromptError
from blora.server.app import create_app
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.loading import check_draws
from blora.server.engines.protocol import Job, Loaded, ModelInfo, Outcome
from blora.server.scheduling.control import Control
from blora.server.settings import Settings

TRIAGE_DIGEST = "sha256:" + "1" * 64
OPEN_DIGEST = "sha256:" + "2" * 64
CHOICES = ("billing", "technical", "account")


def handle(
    name: str,
    digest: str,
    *,
    choices: tuple[str, ...] | None = None,
    n_samples: int = 4,
    stop_error: float | None = None,
    policy: Policy | None = None,
    calibration: Calibration | None = None,
    not_calibrated: bool = False,
    familiarity: Familiarity | None = None,
    question: QuestionConfig | None = None,
    width: int = 2,
) -> AdapterHandle:
    """Return a handle without weights, for the fake engine."""
    config = AdapterConfig(
        base_model=BaseModelRef(
            id="fake/fake", revision=None, fingerprint="sha256:" + "0" * 64, reading="sha256:" + "1" * 64
        ),
        target_modules=("q_proj",),
        modules={"q_proj": (width, width)},
        posterior=PosteriorConfig(),
        prompt=PromptConfig(choices=choices),
        sampling=SamplingConfig(n_samples=n_samples, stop_error=stop_error),
        question=question,
        training={"command": "blora train --data /home/me", "settings": {"epochs": 4}, "validation": {"nll": 0.5}},
    )
    nothing: Any = None
    bank: Any = SimpleNamespace(seed=0, n_samples=n_samples, n_weights=2 * PosteriorConfig().rank * width)
    return AdapterHandle(
        name, digest, config, policy, bank, nothing, 1_700_000_000, calibration, familiarity, not_calibrated
    )


@dataclass(frozen=True)
class FakeRow:
    """Row with one token per word and one per choice."""

    text: str
    choices: tuple[str, ...]
    shadowed: tuple[str, str] | None = None

    @property
    def prompt_tokens(self) -> int:
        return len(self.text.split())

    @property
    def scored_tokens(self) -> int:
        return len(self.choices)

    @property
    def n_tokens(self) -> int:
        return self.prompt_tokens

    @property
    def n_choices(self) -> int:
        return len(self.choices)


def fake_probabilities(text: str, n_choices: int, n_samples: int, seed: int | None) -> Tensor:
    """Return (S, C) probabilities that depend only on the question and the seed.

    A question "p=0.7 ..." puts exactly that on the first choice in every draw.
    """
    if text.startswith("p="):
        first = float(text.split()[0].removeprefix("p="))
        rest = (1 - first) / (n_choices - 1)
        return torch.tensor([[first] + [rest] * (n_choices - 1)] * n_samples, dtype=torch.float64)
    key = hashlib.sha256(f"{text}|{seed}".encode()).digest()
    generator = torch.Generator().manual_seed(int.from_bytes(key[:7], "big"))
    logits = torch.randn(n_samples, n_choices, generator=generator, dtype=torch.float64)
    return logits.softmax(-1)


def fake_cached(text: str) -> int:
    """Return 2 for a question with the word "cached=2", and 0 for one without such a word."""
    return sum(int(word.removeprefix("cached=")) for word in text.split() if word.startswith("cached="))


def fake_familiarity(text: str) -> float | None:
    """Return 0.3 for a question with the word "f=0.3", and None for one without such a word."""
    known = [word for word in text.split() if word.startswith("f=")]
    return float(known[0].removeprefix("f=")) if known else None


def fake_guesses(text: str) -> float:
    """Return 0.9 for a question with the word "g=0.9", and 0 for one without such a word."""
    return sum(float(word.removeprefix("g=")) for word in text.split() if word.startswith("g="))


@dataclass
class FakeEngine:
    """Engine without a model; words in a question make it misbehave.

    POISON raises, NAN gives NaN, UNPACKABLE cannot be packed. `gate` holds every forward pass. What may stop early
    does so after two draws.
    """

    handles: tuple[AdapterHandle, ...] = (
        handle("triage", TRIAGE_DIGEST, choices=CHOICES),
        handle("open", OPEN_DIGEST),
    )
    model_name: str = "fake"
    fresh_draws: bool = True
    lost: str | None = None
    longest_token: int = 100
    n_samples_cap: int = 64
    runs_whole_because: str | None = None
    load_error: Exception | None = None
    broken: bool = False
    batches: list[list[str]] = field(default_factory=list)
    forgotten: list[str] = field(default_factory=list)
    load_gate: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Event = field(default_factory=asyncio.Event)
    computing: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.load_gate.set()
        self.gate.set()

    async def load(self) -> Loaded:
        await self.load_gate.wait()
        if self.load_error is not None:
            raise self.load_error
        model = ModelInfo(
            name=self.model_name,
            id="fake/fake",
            revision=None,
            fingerprint="sha256:" + "0" * 64,
            companion=None,
            device="cpu",
            dtype="float64",
            max_length=8192,
            longest_token=self.longest_token,
            runs_whole_because=self.runs_whole_because,
        )
        for each in self.handles:
            self._checked(each)
        return Loaded(model, self.handles)

    def _checked(self, loaded: AdapterHandle) -> AdapterHandle:
        check_draws(loaded.name, loaded.config.sampling.n_samples, self.n_samples_cap)
        return loaded

    async def pack(
        self,
        handle: AdapterHandle,
        *,
        prompt: str | None,
        messages: list[dict[str, str]] | None,
        choices: Sequence[str],
        scoring: str | None,
    ) -> FakeRow:
        text = prompt if prompt is not None else " ".join(turn["content"] for turn in messages or [])
        if "UNPACKABLE" in text:
            raise PromptError("got what cannot be packed, expected text", param="prompt")
        if "BUG" in text:
            raise KeyError("a bug")
        return FakeRow(text, tuple(choices))

    async def load_adapter(self, path: Path, name: str) -> AdapterHandle:
        if not (path / "contents").is_file():
            raise AdapterError(f"got adapter {path}, expected an existing directory")
        contents = (path / "contents").read_bytes()
        digest = f"sha256:{hashlib.sha256(contents).hexdigest()}"
        return self._checked(handle(name, digest, n_samples=4 + len(contents)))

    async def forget(self, handle: AdapterHandle) -> None:
        self.forgotten.append(handle.digest)

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        texts = [job.row.text for job in jobs]  # type: ignore[attr-defined]
        self.batches.append(texts)
        self.computing.set()
        await self.gate.wait()
        if self.broken or any("POISON" in text for text in texts):
            raise RuntimeError("the device fell off the bus")
        return [
            Outcome(self._probabilities(job), fake_familiarity(text), fake_cached(text), fake_guesses(text))
            for job, text in zip(jobs, texts, strict=True)
        ]

    async def probe(self) -> None:
        if self.broken:
            raise RuntimeError("the device fell off the bus")

    async def close(self) -> None:
        pass

    @staticmethod
    def _probabilities(job: Job) -> Tensor:
        row: Any = job.row
        probs = fake_probabilities(row.text, row.n_choices, job.n_samples, job.seed)[: 2 if job.stop else None]
        return probs * torch.nan if "NAN" in row.text else probs


@dataclass
class Running:
    """An app whose lifespan has started, and its client."""

    app: FastAPI
    client: httpx.AsyncClient
    engine: FakeEngine

    async def metric(self, name: str, **labels: str) -> float:
        """Return the sum of the series with these labels, 0 if there are none."""
        wanted, values = {f'{key}="{value}"' for key, value in labels.items()}, []
        for line in (await self.client.get("/metrics")).text.splitlines():
            series, _, value = line.rpartition(" ")
            found, _, rest = series.partition("{")
            if found == name and wanted <= set(rest.rstrip("}").split(",")) | {""}:
                values.append(float(value))
        return sum(values)


@asynccontextmanager
async def running(engine: FakeEngine, *, ready: bool = True, **settings: Any) -> AsyncIterator[Running]:
    """Start an app around the engine, without the environment's settings."""
    settings = {"default_adapter": "triage", **settings}
    app = create_app(Settings(**settings), engine)
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=transport, base_url="http://test") as client,
    ):
        if ready:
            await app.state.service.settled.wait()
        yield Running(app, client, engine)
