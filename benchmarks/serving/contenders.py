"""The ways to answer that are compared, each a function from questions to probabilities.

All see the same packed rows, so that none reads a prompt twice, and none computes logits where nobody looks: what is
left to differ is the price of uncertainty. One more, `per_choice`, is LoRA as it is mostly run: a sequence for each
choice and logits for every token.
"""

import asyncio
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
from peft import PeftModel
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from benchmarks.serving.adapters import Adapters
from blora.base_model import load_base_model
from blora.decision.abstention import Policy
from blora.inference.batches import PackedBatch, by_length, collate
from blora.inference.packing import PackedRow
from blora.posterior.bank import SampleBank
from blora.posterior.draws import use_draws
from blora.posterior.inject import inject
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.protocol import Job, Stop
from blora.server.engines.stack_scheduler import StackScheduler
from blora.server.engines.torch_engine import TorchEngine
from blora.server.prediction.policies import default_policy
from blora.server.settings import Settings
from blora.training.rows.examples import ExampleSet

__all__ = ["BATCH_TOKENS", "MOST_DRAWS", "Engine", "PlainLora", "Published"]

# Padded tokens that go through the model together, whoever's they are.
BATCH_TOKENS = 1024
MOST_DRAWS = 64
ENSEMBLE_SIZE = 3

T = TypeVar("T")


class SameThread(Executor):
    """An executor that runs work in the thread that submits it.

    The other ways to answer run in the main thread. If ours had a thread of its own, each would have a team of OpenMP
    threads. Teams with more threads than there are cores wait for each other asleep, which doubles the time of a small
    pass; in the server there is one team.
    """

    def submit(self, fn: Callable[..., T], /, *args: Any, **kwargs: Any) -> Future[T]:
        """Run the work and return its result or exception as a future."""
        done: Future[T] = Future()
        try:
            done.set_result(fn(*args, **kwargs))
        except Exception as exc:
            done.set_exception(exc)
        return done


class Engine:
    """Ours, as it is in the server, without HTTP and queue; it remembers no beginnings unless told to."""

    def __init__(self, adapters: Adapters, prefix_cache_mib: int = 0) -> None:
        self._runner = asyncio.Runner()
        served = f"late={adapters.late},everywhere={adapters.everywhere}"
        settings = Settings(
            adapters=served,  # type: ignore[arg-type]
            max_batch_tokens=BATCH_TOKENS,
            prefix_cache_mib=prefix_cache_mib,
        )
        self._engine = TorchEngine(settings)
        self._engine._computing = here = SameThread()
        self._engine._scheduler = StackScheduler(here)
        loaded = self._runner.run(self._engine.load())
        self.late, self.everywhere = map(with_most_draws, loaded.adapters)

    @property
    def policy(self) -> Policy:
        """The calibrated one of the adapter that stops early."""
        in_force = default_policy(self.late)
        assert in_force is not None  # `prepare` saw to it
        return in_force.policy

    def pack(self, examples: ExampleSet) -> list[PackedRow]:
        """Questions as rows."""
        return [self.row(example.prompt or "", example.choices) for example in examples.examples]

    def row(self, prompt: str, choices: Sequence[str]) -> PackedRow:
        """One question as a row."""
        packed = self._engine.pack(self.late, prompt=prompt, messages=None, choices=choices, scoring=None)
        return cast(PackedRow, self._runner.run(packed))

    def fixed(self, rows: Sequence[PackedRow], n_samples: int, handles: Sequence[AdapterHandle] = ()) -> list[Tensor]:
        """Probabilities (S, C) of each row under so many draws; row b is asked of handle b mod their number."""
        return self._run(rows, n_samples, None, handles or (self.late,))

    def early(self, rows: Sequence[PackedRow], n_samples: int) -> list[Tensor]:
        """Return the probabilities under the draws that each decision takes."""
        error = self.late.config.sampling.stop_error
        assert error is not None
        return self._run(rows, n_samples, Stop(self.policy, error), (self.late,))

    def _run(
        self, rows: Sequence[PackedRow], n_samples: int, stop: Stop | None, handles: Sequence[AdapterHandle]
    ) -> list[Tensor]:
        jobs = [Job(handles[b % len(handles)], row, n_samples, None, stop) for b, row in enumerate(rows)]
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for picked in by_length(rows, BATCH_TOKENS):
            results = self._runner.run(self._engine.run([jobs[b] for b in picked]))
            for b, result in zip(picked, results, strict=True):
                found[b] = result.probs
        return found


def with_most_draws(handle: AdapterHandle) -> AdapterHandle:
    """Return the same adapter with a bank of 64 draws, of which the first are its own."""
    seed = handle.config.sampling.seed
    return replace(handle, bank=SampleBank.draw(handle.posterior, handle.digest, MOST_DRAWS, seed))


def stock_model() -> PreTrainedModel:
    """Return the base model as transformers runs it, in bfloat16 throughout."""
    ours = load_base_model().model
    model: Any = type(ours)(ours.config).to(torch.bfloat16)
    model.load_state_dict(ours.state_dict())
    stock: PreTrainedModel = model.eval().requires_grad_(False)
    return stock


class PlainLora:
    """A deterministic LoRA, or several, run by PEFT: one pass a batch and member."""

    def __init__(self, adapter: Path) -> None:
        self._members = [f"member{k}" for k in range(ENSEMBLE_SIZE)]
        first, *others = self._members
        self._peft = PeftModel.from_pretrained(stock_model(), str(adapter), adapter_name=first)  # type: ignore[arg-type]
        for name in others:
            self._peft.load_adapter(str(adapter), name)
        self._peft.set_adapter(first)
        self._peft.eval()

    @torch.inference_mode()
    def packed(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """Probabilities (1, C) of each row, all choices behind one copy of the prompt."""
        found: list[Tensor] = [torch.empty(0)] * len(rows)
        for picked in by_length(rows, BATCH_TOKENS):
            probs = packed_pass(self._peft.get_base_model(), collate([rows[b] for b in picked]))
            for b, of_row in zip(picked, probs, strict=True):
                found[b] = of_row[None, : rows[b].n_choices]
        return found

    def ensemble(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """Probabilities (3, C): three LoRAs, one after the other."""
        parts = []
        for name in self._members:
            self._peft.set_adapter(name)
            parts.append(self.packed(rows))
        self._peft.set_adapter(self._members[0])
        return [torch.cat(of_row) for of_row in zip(*parts, strict=True)]

    @torch.inference_mode()
    def per_choice(self, rows: Sequence[PackedRow]) -> list[Tensor]:
        """Probabilities (1, C), each choice a sequence of its own, logits at every token."""
        pairs = [(b, row.prompt, choice) for b, row in enumerate(rows) for choice in row.continuations]
        pairs.sort(key=lambda pair: len(pair[1]) + len(pair[2]))
        model = self._peft.get_base_model()
        scores: dict[tuple[int, tuple[int, ...]], Tensor] = {}
        while pairs:
            width = len(pairs[-1][1]) + len(pairs[-1][2])
            batch = [pairs.pop() for _ in range(min(len(pairs), max(1, BATCH_TOKENS // width)))]
            ids = torch.zeros(len(batch), width, dtype=torch.long)
            for k, (_, prompt, choice) in enumerate(batch):
                ids[k, : len(prompt) + len(choice)] = torch.tensor([*prompt, *choice])
            log_probs = model(input_ids=ids, use_cache=False).logits.float().log_softmax(-1)
            for k, (b, prompt, choice) in enumerate(batch):
                places = torch.arange(len(prompt) - 1, len(prompt) + len(choice) - 1)
                scores[b, choice] = log_probs[k, places, torch.tensor(choice)].sum()
        return [
            (torch.stack([scores[b, choice] for choice in row.continuations]) / torch.tensor(row.divisors)).softmax(-1)[
                None
            ]
            for b, row in enumerate(rows)
        ]


class Published:
    """S passes one after the other, weights drawn afresh for each, one question at a time."""

    def __init__(self, handle: AdapterHandle) -> None:
        self._posterior = handle.posterior
        self._model = stock_model()
        inject(self._model, self._posterior.modules_shape)
        self._generator = torch.Generator().manual_seed(0)

    @torch.inference_mode()
    def answer(self, rows: Sequence[PackedRow], n_samples: int) -> list[Tensor]:
        """Probabilities (S, C) of each row."""
        found = []
        for row in rows:
            batch, probs = collate([row]), []
            for _ in range(n_samples):
                with use_draws(self._posterior.sample(1, self._generator)):
                    probs.append(packed_pass(self._model, batch))
            found.append(torch.cat(probs))
        return found


def packed_pass(model: Any, batch: PackedBatch) -> Tensor:
    """Probabilities (B, C) by the plainest forward pass of packed rows, its head where it is needed."""
    visible = batch.attention_mask(model.device)
    mask = torch.zeros(visible.shape, dtype=model.dtype).masked_fill_(~visible, torch.finfo(model.dtype).min)
    hidden = model.model(
        input_ids=batch.input_ids, position_ids=batch.position_ids, attention_mask=mask, use_cache=False
    ).last_hidden_state[batch.row, batch.column]
    log_probs = F.log_softmax(model.lm_head(hidden).float(), -1)[batch.place, batch.token]
    totals = torch.zeros(batch.is_choice.numel()).index_add(0, batch.choice, log_probs).view(batch.is_choice.shape)
    return (totals / batch.divisor).masked_fill(~batch.is_choice, -torch.inf).softmax(-1)
