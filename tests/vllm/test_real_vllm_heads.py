"""A real vLLM as a pooling server: heads on the last layer's states, alone and above a LoRA, answer as in torch."""

from collections.abc import Iterator
from dataclasses import replace
from operator import itemgetter
from pathlib import Path
from typing import Any

import httpx
import pytest

import blora
from benchmarks.server_process import TRIAGE, Server, serve
from benchmarks.vllm_process import vllm
from blora.adapter import save_adapter
from blora.base_model import load_base_model
from blora.config import PosteriorConfig
from blora.posterior.decision_head import HeadPosterior
from blora.posterior.inject import parse_layers, select_modules
from blora.posterior.posterior import Posterior
from tests.scenarios import random_draws
from tests.vllm.test_real_vllm import PROMPTS, PYTHON, TOLERANCE
from tests.vllm.test_real_vllm import pytestmark as pytestmark

N_ROWS = 150
# Large enough to change the answers, and small enough that rounding in bfloat16 does not.
LORA_SCALING = 0.1
LEAST_CHANGE, ROUNDING = 0.02, 0.02
OTHER_CHOICES = ("praise", "a complaint about the weather")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A linear head and a pointer head of a few tickets, each alone and above a random LoRA."""
    folder = tmp_path_factory.mktemp("heads")
    for readout in ("linear", "pointer"):
        model = blora.train(
            TRIAGE / "train.jsonl",
            output=folder / readout,
            head=readout,
            depths="last",
            train_examples=N_ROWS,
            validation_examples=N_ROWS,
            dtype="float32",
        )
        adapter = model.adapter
        targets = ("q_proj", "v_proj", "down_proj")
        modules = select_modules(load_base_model().model, targets, parse_layers("last:2", 30))
        lora = Posterior(modules, PosteriorConfig(method="lora"), seed=0)
        lora.set_mean(random_draws(modules, 1, rank=lora.config.rank).factors)
        for factor in lora.B.values():
            factor.set_mean(LORA_SCALING * factor.mean())
        assert isinstance(adapter.posterior, HeadPosterior)
        config = replace(adapter.config, target_modules=targets, modules=modules, posterior=lora.config)
        above = HeadPosterior(adapter.posterior.head, lora)
        save_adapter(folder / f"{readout}-lora", above, config, load_base_model(), adapter.familiarity)
    return ",".join(f"{path.name}={path}" for path in sorted(folder.iterdir()))


@pytest.fixture(scope="module")
def torch_server(adapters: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("torch") / "log", adapters=adapters) as server:
        yield server


@pytest.fixture(scope="module")
def vllm_server(adapters: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("vllm")
    model = Path(load_base_model().model.name_or_path)
    flags = {"engine": "vllm", "engine_folder": str(folder / "draws"), "timeout_s": "600"}
    with (
        vllm(Path(str(PYTHON)), model, folder / "vllm.log", pooling=True) as url,
        serve(folder / "log", adapters=adapters, engine_url=url, **flags) as server,
    ):
        yield server


def ask(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    answer: dict[str, Any] = httpx.post(f"{server.url}/v1/predict", json=body, timeout=600).raise_for_status().json()
    return answer


@pytest.mark.parametrize("choices", [None, OTHER_CHOICES])
@pytest.mark.parametrize("adapter", ["linear", "pointer", "linear-lora", "pointer-lora"])
def test_it_answers_as_torch_does(
    torch_server: Server, vllm_server: Server, adapter: str, choices: tuple[str, ...] | None
) -> None:
    for prompt in PROMPTS:
        body = {"prompt": prompt, "adapter": adapter} | ({"choices": choices} if choices else {})
        here, there = ask(torch_server, body), ask(vllm_server, body)
        found, expected = (
            {one["choice"]: one["probability"] for one in each["probabilities"]} for each in (there, here)
        )
        assert found == pytest.approx(expected, abs=TOLERANCE)
        assert there["n_samples"] == here["n_samples"] == 64
        assert there["familiarity"] == pytest.approx(here["familiarity"], abs=TOLERANCE)


@pytest.mark.parametrize("readout", ["linear", "pointer"])
def test_the_lora_changes_the_answers_as_in_torch(torch_server: Server, vllm_server: Server, readout: str) -> None:
    def change(server: Server) -> list[float]:
        answers = [
            [ask(server, {"prompt": prompt, "adapter": name})["probabilities"] for prompt in PROMPTS]
            for name in (readout, f"{readout}-lora")
        ]
        alone, above = (
            [one["probability"] for answer in each for one in sorted(answer, key=itemgetter("choice"))]
            for each in answers
        )
        return [after - before for before, after in zip(alone, above, strict=True)]

    here, there = change(torch_server), change(vllm_server)
    assert max(map(abs, here)) > LEAST_CHANGE
    assert there == pytest.approx(here, abs=ROUNDING)
