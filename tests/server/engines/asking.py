"""A tiny model with two adapters on disk, an engine that serves them, and its answers."""

import dataclasses
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import torch

from blora.adapter import save_adapter
from blora.adapter.calibration_file import store_calibration
from blora.base_model import load_base_model
from blora.config import AdapterConfig, PosteriorConfig, PromptConfig, SamplingConfig
from blora.posterior.posterior import Posterior
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import Job, Loaded, Stop
from blora.server.engines.torch_engine import TorchEngine
from blora.server.scheduling.control import Control
from blora.server.settings import Settings
from tests.scenarios import adapted_modules
from tests.server.calibrations import calibration

CHOICES = ("billing", "technical", "account")
QUESTIONS = ("why", "a much longer question than the other one", "where is my money?", "q")


def write_adapter(path: Path, base_path: Path, *, seed: int, **config: Any) -> Path:
    base = load_base_model(str(base_path), device="cpu", dtype="float32")
    modules = adapted_modules(base.model)
    posterior = Posterior(modules, PosteriorConfig(rank=2, prior_std=1.0), seed=seed)
    save_adapter(
        path,
        posterior,
        AdapterConfig(
            base_model=base.ref,
            target_modules=("q_proj", "v_proj"),
            modules=modules,
            posterior=posterior.config,
            **{"prompt": PromptConfig(choices=CHOICES), "sampling": SamplingConfig(n_samples=4, seed=7)} | config,
        ),
        base,
    )
    return path


def settings(folder: Path, *adapters: str, **more: Any) -> Settings:
    paths = tuple(f"{name}={folder / name}" for name in adapters or ("one", "two"))
    return Settings(base_model=str(folder / "tiny"), device="cpu", dtype="float32", adapters=paths, **more)


@asynccontextmanager
async def loaded(chosen: Settings) -> AsyncIterator[tuple[TorchEngine, Loaded]]:
    engine = TorchEngine(chosen)
    try:
        yield engine, await engine.load()
    finally:
        await engine.close()


async def calibrated(folder: Path, **changes: Any) -> str:
    """Write a calibration of adapter `one` as served, with changed bindings, and return its digest."""
    async with loaded(settings(folder, "one")) as (_, state):
        digest = state.adapters[0].digest
    bound = {"adapter_digest": digest, "dtype": "float32", "n_samples": 4, "seed": 7, **changes}
    made = calibration(bound["adapter_digest"])
    store_calibration(folder / "one", dataclasses.replace(made, binding=dataclasses.replace(made.binding, **bound)))
    return digest


class Asking:
    """The engine of the tests, with helpers for its probabilities."""

    def __init__(self, engine: TorchEngine, state: Loaded) -> None:
        self.engine = engine
        self.handles = {handle.name: handle for handle in state.adapters}

    @property
    def one(self) -> AdapterHandle:
        return self.handles["one"]

    @property
    def two(self) -> AdapterHandle:
        return self.handles["two"]

    async def job(
        self,
        question: str,
        *,
        adapter: str = "one",
        n_samples: int = 4,
        seed: int | None = None,
        stop: Stop | None = None,
        **more: Any,
    ) -> Job:
        handle = self.handles[adapter]
        asked: dict[str, Any] = {"prompt": question, "messages": None, "choices": CHOICES, "scoring": None, **more}
        return Job(handle, await self.engine.pack(handle, **asked), n_samples, seed, stop)

    async def probabilities(self, question: str, **more: Any) -> torch.Tensor:
        [probs] = await self.run([await self.job(question, **more)])
        return probs

    async def run(self, jobs: Sequence[Job], control: Control | None = None) -> list[torch.Tensor]:
        """Return the probabilities of each job."""
        return [found.probs for found in await self.engine.run(jobs, control)]
