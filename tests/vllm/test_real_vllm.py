"""A real vLLM behind a real server: the answers of the torch engine, by labels and by texts of several tokens."""

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from benchmarks.server_process import Server, serve
from benchmarks.vllm_process import vllm
from blora.base_model import load_base_model
from tests.loras import lora_of_the_demos_task

PYTHON = os.environ.get("VLLM_PYTHON")
pytestmark = [
    pytest.mark.model,
    pytest.mark.skipif(
        PYTHON is None, reason="VLLM_PYTHON is not set; `make test-vllm` installs vLLM (3.4 GB) and sets it"
    ),
]
# bfloat16 on both sides, rounded in other places.
TOLERANCE = 0.05
PROMPTS = ("I was charged twice this month.", "The app crashes when I upload a photo.", "Please delete my account.")


@pytest.fixture(scope="module")
def adapter(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter with a posterior over a LoRA, without a head."""
    return lora_of_the_demos_task(tmp_path_factory.mktemp("adapter") / "triage", load_base_model())


@pytest.fixture(scope="module")
def torch_server(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve(tmp_path_factory.mktemp("torch") / "log", adapters=f"triage={adapter}", timeout_s="600") as server:
        yield server


@pytest.fixture(scope="module")
def vllm_server(adapter: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("vllm")
    model = Path(load_base_model().model.name_or_path)
    flags = {"engine": "vllm", "engine_folder": str(folder / "draws"), "timeout_s": "600"}
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("VLLM_API_KEY", "asked-for-and-given")
        with (
            vllm(Path(str(PYTHON)), model, folder / "vllm.log", max_loras=2) as url,
            serve(folder / "log", adapters=f"triage={adapter}", engine_url=url, **flags) as server,
        ):
            assert httpx.get(f"{url}/v1/models").status_code == 401
            yield server


def ask(server: Server, body: dict[str, Any]) -> dict[str, float]:
    answer = httpx.post(f"{server.url}/v1/predict", json=body, timeout=600).raise_for_status().json()
    return {entry["choice"]: entry["probability"] for entry in answer["probabilities"]}


@pytest.mark.parametrize("scoring", ["label", "text"])
def test_it_answers_as_torch_does(torch_server: Server, vllm_server: Server, scoring: str) -> None:
    for prompt in PROMPTS if scoring == "label" else PROMPTS[:1]:
        body = {"prompt": prompt, "scoring": scoring}
        assert ask(vllm_server, body) == pytest.approx(ask(torch_server, body), abs=TOLERANCE)


async def test_many_at_once_by_letters_and_by_texts_get_what_one_gets_alone(vllm_server: Server) -> None:
    """One by texts in between: vLLM's engine on CPUs stops if its requests share a pass with others."""
    bodies = [{"prompt": prompt, "scoring": "label"} for prompt in PROMPTS]
    bodies.append({"prompt": PROMPTS[0], "scoring": "text"})
    alone = [ask(vllm_server, body) for body in bodies]
    places = [0, 1, 2, 0, 3, 1, 2, *range(3), *range(3)]
    async with httpx.AsyncClient(base_url=vllm_server.url, timeout=600) as client:
        answers = await asyncio.gather(*(client.post("/v1/predict", json=bodies[place]) for place in places))
    for place, answer in zip(places, answers, strict=True):
        found = {entry["choice"]: entry["probability"] for entry in answer.json()["probabilities"]}
        assert found == pytest.approx(alone[place], abs=TOLERANCE)


def test_it_decides_and_counts_as_with_any_engine(vllm_server: Server) -> None:
    body = {"prompt": PROMPTS[0], "scoring": "label", "policy": {"min_confidence": 1.0}}
    answer = httpx.post(f"{vllm_server.url}/v1/predict", json=body, timeout=600).json()
    assert (answer["answer"], answer["abstained"], answer["n_samples"]) == (None, True, 4)
    assert (
        'blora_abstentions_total{adapter="triage",reason="low_confidence"}'
        in httpx.get(f"{vllm_server.url}/metrics").text
    )
