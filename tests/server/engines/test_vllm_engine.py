"""The vLLM engine against a stand-in: the numbers of the torch engine, and errors that say what to do."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch
from transformers import MistralConfig

from blora.config import SamplingConfig
from blora.decision.abstention import Policy
from blora.errors import AdapterError, BloraError, PromptTooLongError
from blora.server.app import create_app
from blora.server.engines.protocol import Job, Stop
from blora.server.engines.vllm_engine import VllmEngine
from blora.server.keys import line_of
from blora.server.scheduling.control import AbandonedError, Control
from blora.server.settings import Settings
from blora.vllm.client import VllmClient, VllmError
from tests.scenarios import CONFIGS, random_model, tiny_tokenizer
from tests.server.engines.asking import CHOICES, QUESTIONS, Asking, loaded, settings, write_adapter
from tests.server.engines.fake_vllm import FakeVllm, fake_vllm

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # PEFT's

# Settings of the tiny llama that a model with a sliding window shares.
SIZES = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "max_position_embeddings",
)
# Float32 on both sides; vLLM's model reads a choice at a time, ours all in one row.
TOLERANCE = 1e-4


@pytest.fixture
async def vllm(folder: Path) -> AsyncIterator[FakeVllm]:
    async with fake_vllm(folder / "tiny") as fake:
        yield fake


def chosen(folder: Path, fake: FakeVllm, tmp_path: Path, *adapters: str, **more: Any) -> Settings:
    return settings(folder, *adapters, engine="vllm", engine_url=fake.url, engine_folder=tmp_path / "draws", **more)


@pytest.fixture
async def engine(folder: Path, vllm: FakeVllm, tmp_path: Path) -> AsyncIterator[VllmEngine]:
    made = VllmEngine(chosen(folder, vllm, tmp_path, "one"))
    yield made
    await made.close()


async def job(
    engine: VllmEngine, handle: Any, question: str, *, n_samples: int = 4, stop: Stop | None = None, **more: Any
) -> Job:
    asked: dict[str, Any] = {"prompt": question, "messages": None, "choices": CHOICES, "scoring": None, **more}
    return Job(handle, await engine.pack(handle, **asked), n_samples, None, stop)


@pytest.mark.parametrize("scoring", ["text", "label"])
async def test_its_numbers_are_those_of_torch(engine: VllmEngine, asking: Asking, scoring: str) -> None:
    [handle] = (await engine.load()).adapters
    jobs = [await job(engine, handle, question, scoring=scoring) for question in QUESTIONS[:2]]
    for question, found in zip(QUESTIONS, await engine.run(jobs), strict=False):
        expected = await asking.probabilities(question, scoring=scoring)
        torch.testing.assert_close(found.probs, expected, rtol=0, atol=TOLERANCE)
        assert found.probs.std(0).max() > 0.01  # draws differ


async def test_prompts_beyond_a_sliding_window_get_the_numbers_of_torch(tmp_path: Path) -> None:
    sizes = {name: getattr(CONFIGS["llama"], name) for name in SIZES}
    model = random_model(MistralConfig(**sizes, sliding_window=16))
    model.save_pretrained(tmp_path / "tiny")
    tiny_tokenizer().save_pretrained(tmp_path / "tiny")
    write_adapter(tmp_path / "one", tmp_path / "tiny", seed=1)
    question = "Where is my money? " * 4
    async with fake_vllm(tmp_path / "tiny") as fake, loaded(settings(tmp_path, "one")) as (other, state):
        asking, engine = Asking(other, state), VllmEngine(chosen(tmp_path, fake, tmp_path, "one"))
        [handle] = (await engine.load()).adapters
        [found] = await engine.run([await job(engine, handle, question)])
        await engine.close()
        torch.testing.assert_close(found.probs, await asking.probabilities(question), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize(("suffices", "made"), [(1, 2), (3, 4)])
async def test_it_makes_no_more_draws_than_the_decision_takes(
    engine: VllmEngine, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch, suffices: int, made: int
) -> None:
    monkeypatch.setattr("blora.server.engines.vllm_engine.looks", lambda n_samples: [2, n_samples])
    monkeypatch.setattr("blora.server.engines.vllm_engine.draws_suffice", lambda job, probs: len(probs) >= suffices)
    [handle] = (await engine.load()).adapters
    asked = vllm.asked
    [found] = await engine.run([await job(engine, handle, "why", stop=Stop(Policy(min_confidence=0.5), 0.1))])
    assert len(found.probs) == made
    assert vllm.asked - asked == made * len(CHOICES)


async def test_prompts_do_not_go_to_the_proxy_of_the_environment(
    folder: Path, vllm: FakeVllm, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    for name in ("NO_PROXY", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
    engine = VllmEngine(chosen(folder, vllm, tmp_path, "one"))
    [handle] = (await engine.load()).adapters
    assert len(await engine.run([await job(engine, handle, "why")])) == 1
    await engine.close()


async def test_requests_that_nobody_waits_for_are_not_sent(engine: VllmEngine, vllm: FakeVllm) -> None:
    [handle] = (await engine.load()).adapters
    asked, seen = vllm.asked, 0

    def wants(payload: object) -> bool:
        nonlocal seen
        seen += 1
        return seen < 3

    with pytest.raises(AbandonedError):
        await engine.run([await job(engine, handle, "why")], Control(wants))
    assert vllm.asked - asked <= 3 < 4 * len(CHOICES)


async def test_tokens_right_after_a_prompt_are_asked_for_all_at_once(engine: VllmEngine, vllm: FakeVllm) -> None:
    await engine.load()
    [name, *_] = vllm.loras
    client, asked = VllmClient(vllm.url, timeout_s=10, concurrency=3), vllm.asked
    found = await client.next_token(name, [5, 6, 7], [9, 3, 9])
    apart = [await client.continuation(name, [5, 6, 7], [token]) for token in (9, 3, 9)]
    assert vllm.asked - asked == 4
    assert found == pytest.approx(apart, abs=1e-5)
    await client.close()


async def test_adapters_are_told_apart_by_their_contents(
    folder: Path, vllm: FakeVllm, tmp_path: Path, asking: Asking
) -> None:
    engine = VllmEngine(chosen(folder, vllm, tmp_path, "one", "two"))
    _, two = (await engine.load()).adapters
    assert len(vllm.loras) == 8
    [found] = await engine.run([await job(engine, two, "why", scoring="label")])
    expected = await asking.probabilities("why", adapter="two", scoring="label")
    torch.testing.assert_close(found.probs, expected, rtol=0, atol=TOLERANCE)
    await engine.close()


async def test_requests_in_flight_finish_on_an_adapter_that_was_unloaded(
    folder: Path, vllm: FakeVllm, tmp_path: Path
) -> None:
    engine = VllmEngine(chosen(folder, vllm, tmp_path, "one", "two", timeout_s=3))
    one, two = (await engine.load()).adapters
    late = await job(engine, one, "why")
    await engine.forget(one)
    [found] = await engine.run([late])
    assert len(found.probs) == 4
    async with asyncio.timeout(10):
        while len(vllm.loras) > 4:
            await asyncio.sleep(0.05)
    [found] = await engine.run([await job(engine, two, "why")])
    assert len(found.probs) == 4
    await engine.close()


async def test_an_adapter_that_is_served_twice_is_kept_until_the_last(
    folder: Path, vllm: FakeVllm, tmp_path: Path
) -> None:
    engine = VllmEngine(chosen(folder, vllm, tmp_path, "one", timeout_s=1.0))
    [handle] = (await engine.load()).adapters
    again = await engine.load_adapter(folder / "one", "again")
    await engine.forget(again)
    await asyncio.sleep(1.5)
    assert len(vllm.loras) == 4
    vllm.loras.clear()  # whoever asks next would notice
    assert len((await engine.run([await job(engine, handle, "why")]))[0].probs) == 4
    await engine.close()


async def test_a_vllm_that_was_started_again_is_given_the_draws_anew(engine: VllmEngine, vllm: FakeVllm) -> None:
    [handle] = (await engine.load()).adapters
    vllm.loras.clear()
    await engine.probe()
    [found] = await engine.run([await job(engine, handle, "why")])
    assert (len(found.probs), len(vllm.loras)) == (4, 4)


async def test_a_vllm_that_was_started_again_with_another_model_gives_no_answer(folder: Path, tmp_path: Path) -> None:
    async with fake_vllm(folder / "tiny") as first:
        engine = VllmEngine(chosen(folder, first, tmp_path, "one"))
        [handle] = (await engine.load()).adapters
        await engine.run([await job(engine, handle, "why")])
    async with fake_vllm(folder / "tiny", first.port) as second:
        second.scale = 4.0
        with pytest.raises(VllmError, match="let vLLM serve the same base model"):
            await engine.run([await job(engine, handle, "why")])
        second.scale = 1.0
        assert len((await engine.run([await job(engine, handle, "why")]))[0].probs) == 4
        await engine.close()


async def test_a_related_model_is_noticed_by_what_comes_of_the_recalibration(
    folder: Path, vllm: FakeVllm, tmp_path: Path
) -> None:
    write_adapter(folder / "sharp", folder / "tiny", seed=1, sampling=SamplingConfig(n_samples=4, temperature=0.15))
    vllm.scale = 1.9
    for name, refused in (("one", False), ("sharp", True)):
        engine = VllmEngine(chosen(folder, vllm, tmp_path, name))
        with pytest.raises(AdapterError, match="differ by") if refused else nullcontext():
            await engine.load()
        await engine.close()


async def test_a_run_whose_clients_have_left_waits_for_no_request(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handle] = (await engine.load()).adapters

    async def never(*args: Any) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(engine._answers, "log_probs", never)
    left = asyncio.Event()
    running = asyncio.create_task(
        engine.run([await job(engine, handle, "why")], Control(lambda payload: not left.is_set()))
    )
    await asyncio.sleep(0.5)
    assert not running.done()
    left.set()
    with pytest.raises(AbandonedError):
        await asyncio.wait_for(running, 5)


async def test_a_prompt_that_vllm_would_not_read_is_refused_before(engine: VllmEngine, vllm: FakeVllm) -> None:
    vllm.max_length = 40
    [handle] = (await engine.load()).adapters
    with pytest.raises(PromptTooLongError):
        await job(engine, handle, "word " * 60)


async def test_a_folder_that_cannot_be_written_is_told(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    (tmp_path / "draws").write_text("a file")
    engine = VllmEngine(chosen(folder, vllm, tmp_path, "one"))
    with pytest.raises(AdapterError, match="vLLM cannot serve adapter"):
        await engine.load()
    await engine.close()


async def test_a_second_server_finds_its_draws_there(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    for _ in range(2):
        engine = VllmEngine(chosen(folder, vllm, tmp_path, "one"))
        await engine.load()
        await engine.close()
    assert len(vllm.loras) == 4


async def test_a_vllm_of_another_model_is_noticed(engine: VllmEngine, vllm: FakeVllm) -> None:
    vllm.scale = 4.0
    with pytest.raises(AdapterError, match="let vLLM serve the same base model"):
        await engine.load()


async def test_an_adapter_that_is_refused_leaves_nothing_in_vllm(
    folder: Path, vllm: FakeVllm, engine: VllmEngine
) -> None:
    await engine.load()
    served = set(vllm.loras)
    vllm.scale = 4.0
    for path in (folder / "two", folder / "one"):  # the second one is served already
        with pytest.raises(AdapterError, match="let vLLM serve the same base model"):
            await engine.load_adapter(path, "again")
        assert set(vllm.loras) == served


async def test_a_draw_that_does_not_load_takes_the_earlier_ones_along(
    engine: VllmEngine, vllm: FakeVllm, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = VllmClient.load

    async def load(self: VllmClient, name: str, folder: Path) -> None:
        if name.endswith("-003"):
            raise VllmError("no room for another LoRA")
        await real(self, name, folder)

    monkeypatch.setattr(VllmClient, "load", load)
    with pytest.raises(AdapterError, match="no room for another LoRA"):
        await engine.load()
    assert vllm.loras == {}


async def test_a_vllm_that_is_not_there_is_named(folder: Path, vllm: FakeVllm, tmp_path: Path) -> None:
    gone = chosen(folder, vllm, tmp_path, "one").model_copy(update={"engine_url": "http://127.0.0.1:9"})
    engine = VllmEngine(gone)
    with pytest.raises(BloraError, match=r"No vLLM answers at http://127\.0\.0\.1:9"):
        await engine.load()
    await engine.close()


async def test_a_draw_that_fails_fails_the_answer_and_never_thins_it_out(engine: VllmEngine, vllm: FakeVllm) -> None:
    [handle] = (await engine.load()).adapters
    vllm.fail = 1
    with pytest.raises(VllmError, match="answered 500"):
        await engine.run([await job(engine, handle, "why", scoring="label")])
    [found] = await engine.run([await job(engine, handle, "why", scoring="label")])
    assert len(found.probs) == 4
    await engine.probe()


async def test_the_other_draws_of_an_answer_that_failed_are_called_off(
    engine: VllmEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    [handle] = (await engine.load()).adapters
    under_way: list[asyncio.Future[None]] = []

    async def draw(handle: Any, row: Any, s: int, look: Any) -> Any:
        if s == 3:
            raise VllmError("no such LoRA")
        under_way.append(asyncio.get_running_loop().create_future())
        await under_way[-1]
        raise AssertionError("nobody waits for this draw")

    monkeypatch.setattr(engine._answers, "log_probs", draw)
    with pytest.raises(VllmError, match="no such LoRA"):
        await engine.run([await job(engine, handle, "why", scoring="label")])
    assert len(under_way) == 3
    assert all(one.cancelled() for one in under_way)


async def test_over_http_it_answers_decides_and_refuses_draws_that_it_has_not(
    folder: Path, vllm: FakeVllm, tmp_path: Path
) -> None:
    app = create_app(chosen(folder, vllm, tmp_path, "one"))
    transport = httpx.ASGITransport(app)
    async with app.router.lifespan_context(app), httpx.AsyncClient(transport=transport, base_url="http://t") as client:
        await app.state.service.settled.wait()
        assert app.state.service.failure is None
        asked = {"prompt": "why", "scoring": "label", "policy": {"min_confidence": 0.99}}
        answer = (await client.post("/v1/predict", json=asked)).json()
        assert (answer["abstained"], answer["n_samples"]) == (True, 4)
        assert (await client.get("/info")).json()["model"]["device"] == "vllm"
        for more, param in (({"n_samples": 5}, "n_samples"), ({"seed": 1}, "seed")):
            refused = await client.post("/v1/predict", json={"prompt": "why", **more})
            assert (refused.status_code, refused.json()["error"]["param"]) == (422, param)
        vllm.fail = 1
        failed = await client.post("/v1/predict", json=asked)
        assert (failed.status_code, failed.json()["error"]["code"]) == (500, "model_failure")


async def test_an_adapter_that_comes_while_vllm_is_away_is_answered_with_try_again(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "keys").write_text(line_of("ops", "admin", "key-of-ops") + "\n")
    async with AsyncExitStack() as up:
        async with fake_vllm(folder / "tiny") as vllm:
            app = create_app(chosen(folder, vllm, tmp_path, "one", adapter_root=folder, api_keys=tmp_path / "keys"))
            await up.enter_async_context(app.router.lifespan_context(app))
            await app.state.service.settled.wait()
        client = await up.enter_async_context(httpx.AsyncClient(transport=httpx.ASGITransport(app)))
        body, headers = {"name": "two", "path": "two"}, {"authorization": "Bearer key-of-ops"}
        refused = await client.post("http://t/v1/adapters", json=body, headers=headers)
    error = refused.json()["error"]
    assert (refused.status_code, error["code"]) == (503, "adapter_unavailable")
    assert "does not answer (ConnectError): try again" in error["message"]
