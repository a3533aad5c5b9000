"""Answers: their contents, errors, and dependence on the request."""

import asyncio
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from blora.decision.abstention import Policy
from blora.server.engines.digests import calibration_digest
from blora.server.engines.protocol import Job, Outcome
from blora.server.keys import line_of
from blora.server.scheduling.control import Control
from tests.server.fakes import (
    CHOICES,
    OPEN_DIGEST,
    TRIAGE_DIGEST,
    FakeEngine,
    Running,
    fake_probabilities,
    handle,
    running,
)


async def ask(server: Running, **fields: Any) -> dict[str, Any]:
    """Return the answer to a valid question."""
    response = await server.client.post("/v1/predict", json=fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


async def test_an_answer_has_exactly_the_fields_of_the_contract(server: Running) -> None:
    answer = await ask(server, prompt="p=0.7 charged twice")
    assert answer.keys() == {
        "id", "created", "model", "adapter", "answer", "top_choice", "probabilities", "confidence",
        "predictive_entropy", "expected_entropy", "mutual_information", "margin", "prediction_set", "abstained", "abstain_reasons",
        "policy", "n_samples", "usage", "timing",
    }  # fmt: skip
    assert answer["model"] == "fake"
    assert answer["adapter"] == {
        "name": "triage",
        "digest": TRIAGE_DIGEST,
        "calibration_digest": calibration_digest(None, None),
    }
    assert (answer["answer"], answer["top_choice"]) == ("billing", "billing")
    assert [entry["choice"] for entry in answer["probabilities"]] == list(CHOICES)
    assert [entry["probability"] for entry in answer["probabilities"]] == pytest.approx([0.7, 0.15, 0.15])
    assert (answer["abstained"], answer["abstain_reasons"], answer["policy"]) == (False, [], None)
    assert answer["prediction_set"] is None
    assert answer["n_samples"] == 4
    assert answer["usage"] == {"prompt_tokens": 3, "cached_tokens": 0, "scored_tokens": 3}
    assert answer["timing"]["queue_ms"] >= 0
    assert answer["timing"]["compute_ms"] >= 0


async def test_waiting_and_computing_are_told_apart_in_milliseconds(engine: FakeEngine) -> None:
    async with running(engine, max_batch_tokens=8) as server:  # so that each question is a pass of its own
        engine.gate.clear()
        asked = [asyncio.create_task(ask(server, prompt=f"p=0.9 {k}")) for k in range(2)]
        await engine.computing.wait()
        began = time.perf_counter()
        await asyncio.sleep(0.5)
        engine.gate.set()
        first, second = (answer["timing"] for answer in await asyncio.gather(*asked))
        took_ms = 1e3 * (time.perf_counter() - began)
        assert 500 <= first["compute_ms"] <= took_ms + 5000
        assert 500 <= second["queue_ms"] <= took_ms + 5000
        assert second["compute_ms"] < second["queue_ms"]
        assert first["queue_ms"] < first["compute_ms"]


async def test_the_numbers_are_those_of_the_posterior_predictive(server: Running) -> None:
    answer = await ask(server, prompt="any", return_samples=True)
    probs = fake_probabilities("any", 3, 4, None)
    mean = probs.mean(0)
    assert [entry["probability"] for entry in answer["probabilities"]] == pytest.approx(mean.tolist())
    assert [entry["std"] for entry in answer["probabilities"]] == pytest.approx(probs.std(0, correction=0).tolist())
    assert sum(entry["probability"] for entry in answer["probabilities"]) == pytest.approx(1, abs=1e-6)
    assert answer["confidence"] == pytest.approx(mean.max().item())
    assert answer["predictive_entropy"] == pytest.approx(-(mean * mean.log()).sum().item())
    assert answer["mutual_information"] == pytest.approx(answer["predictive_entropy"] - answer["expected_entropy"])
    first, second = mean.sort(descending=True).values[:2].tolist()
    assert answer["margin"] == pytest.approx(first - second)
    assert answer["samples"] == [pytest.approx(draw) for draw in probs.tolist()]


async def test_messages_are_a_question_too(server: Running) -> None:
    turns = [{"role": "system", "content": "p=0.9"}, {"role": "user", "content": "hello"}]
    assert (await ask(server, messages=turns))["confidence"] == pytest.approx(0.9)


async def test_choices_may_come_with_the_question(server: Running) -> None:
    answer = await ask(server, adapter="open", prompt="p=0.1 x", choices=["yes", "no"])
    assert (answer["answer"], answer["adapter"]["digest"]) == ("no", OPEN_DIGEST)


async def test_equal_requests_get_equal_answers_and_seeds_draw_afresh(server: Running) -> None:
    kept = ("probabilities", "predictive_entropy", "mutual_information")
    first, again, seeded, seeded_again, other = [
        {key: (await ask(server, prompt="x", **seed))[key] for key in kept}
        for seed in ({}, {}, {"seed": 1}, {"seed": 1}, {"seed": 2})
    ]
    assert first == again
    assert seeded == seeded_again
    assert first != seeded != other


async def test_the_digest_may_be_pinned(server: Running) -> None:
    answer = await ask(server, prompt="x", adapter=f"triage@{TRIAGE_DIGEST}")
    assert answer["adapter"]["name"] == "triage"


async def test_abstaining_withholds_the_answer_and_says_why(server: Running) -> None:
    policy = {"min_confidence": 0.8, "max_predictive_entropy": 0.5, "max_mutual_information": 0.1}
    answer = await ask(server, prompt="p=0.7 x", policy=policy)
    assert (answer["abstained"], answer["answer"], answer["top_choice"]) == (True, None, "billing")
    entropy = -(0.7 * math.log(0.7) + 0.3 * math.log(0.15))
    assert answer["abstain_reasons"] == [
        {"reason": "low_confidence", "value": pytest.approx(0.7), "threshold": 0.8},
        {"reason": "high_predictive_entropy", "value": pytest.approx(entropy), "threshold": 0.5},
    ]
    assert answer["policy"] == {**policy, "source": "request"}


async def test_a_margin_that_is_too_low_withholds_the_answer(server: Running) -> None:
    answer = await ask(server, prompt="p=0.7 x", policy={"min_margin": 0.6})
    assert answer["answer"] is None
    reason = {"reason": "low_margin", "value": pytest.approx(0.55), "threshold": 0.6}
    assert (answer["abstain_reasons"], answer["policy"]) == ([reason], {"min_margin": 0.6, "source": "request"})
    assert (await ask(server, prompt="p=0.7 x", policy={"min_margin": 0.5}))["answer"] == "billing"


@pytest.mark.parametrize("first", [0.7, 0.1, 0.9999999, 1.0])
async def test_exactly_at_a_threshold_is_answered(server: Running, first: float) -> None:
    question = {"prompt": f"p={first} x"}
    plain = await ask(server, **question)
    policy = {
        "min_confidence": plain["confidence"],
        "max_predictive_entropy": plain["predictive_entropy"],
        "max_mutual_information": plain["mutual_information"],
        "min_margin": plain["margin"],
    }
    assert not (await ask(server, **question, policy=policy))["abstained"]


async def test_the_adapters_policy_holds_unless_the_request_brings_one() -> None:
    careful = handle("careful", TRIAGE_DIGEST, choices=CHOICES, policy=Policy(min_confidence=0.8))
    async with running(FakeEngine(handles=(careful,)), default_adapter=None) as server:
        strict = await ask(server, prompt="p=0.7 x")
        assert strict["abstained"]
        assert strict["policy"] == {"min_confidence": 0.8, "source": "adapter"}
        lenient = await ask(server, prompt="p=0.7 x", policy={"min_confidence": 0})
        assert lenient["answer"] == "billing"
        assert lenient["policy"] == {"min_confidence": 0.0, "source": "request"}


async def test_draws_may_stop_early_only_where_a_policy_decides() -> None:
    hasty = handle("hasty", TRIAGE_DIGEST, choices=CHOICES, stop_error=0.01)
    async with running(FakeEngine(handles=(hasty,)), default_adapter=None) as server:
        decided = await ask(server, prompt="x", policy={"min_confidence": 0.5}, return_samples=True)
        assert decided["n_samples"] == len(decided["samples"]) == 2
        assert decided["samples"] == (await ask(server, prompt="x", return_samples=True))["samples"][:2]
        assert (await ask(server, prompt="x"))["n_samples"] == 4
        assert await server.metric("blora_samples_per_request_sum") == 2 + 4 + 4
    patient = handle("patient", TRIAGE_DIGEST, choices=CHOICES)
    async with running(FakeEngine(handles=(patient,)), default_adapter=None) as server:
        assert (await ask(server, prompt="x", policy={"min_confidence": 0.5}))["n_samples"] == 4


async def test_a_batch_answers_in_order_and_a_bad_input_fails_alone(server: Running) -> None:
    inputs = [
        {"prompt": "p=0.9 x"},
        {"prompt": "POISON"},
        {"prompt": ""},
        {"prompt": "NAN"},
        {"prompt": "p=0.6 y", "adapter": "nobody"},
        {"prompt": "BUG"},
        {"prompt": "p=0.8 z"},
    ]
    response = await server.client.post("/v1/predict", json={"inputs": inputs, "n_samples": 2})
    assert response.status_code == 200
    predictions = response.json()["predictions"]
    assert [entry["error"]["code"] if "error" in entry else entry["confidence"] for entry in predictions] == [
        pytest.approx(0.9),
        "model_failure",
        "empty_string",
        "non_finite",
        "unknown_adapter",
        "internal_error",
        pytest.approx(0.8),
    ]
    assert predictions[0]["n_samples"] == 2
    assert predictions[2]["error"]["param"] == "prompt"


@pytest.mark.parametrize("bad", [math.nan, math.inf])
async def test_one_number_that_is_not_finite_among_the_draws_withholds_the_answer(
    server: Running, monkeypatch: pytest.MonkeyPatch, bad: float
) -> None:
    async def run(jobs: Sequence[Job], control: Control | None = None) -> list[Outcome]:
        probs = fake_probabilities("any", 3, 4, None)
        probs[3, 2] = bad
        return [Outcome(probs) for _ in jobs]

    monkeypatch.setattr(server.app.state.service._batcher, "_run", run)
    response = await server.client.post("/v1/predict", json={"prompt": "x"})
    assert (response.status_code, response.json()["error"]["code"]) == (500, "non_finite")
    assert await server.metric("blora_requests_total", adapter="triage", outcome="non_finite") == 1


async def test_a_bug_is_counted_against_the_adapter(server: Running) -> None:
    await server.client.post("/v1/predict", json={"prompt": "BUG"})
    assert await server.metric("blora_requests_total", adapter="triage", outcome="internal_error") == 1
    assert await server.metric("blora_requests_total", outcome="answered") == 0


@pytest.mark.parametrize(
    ("cache_mib", "reason", "once"), [(8, None, True), (0, None, False), (8, "parts move the logits", False)]
)
async def test_beginnings_are_read_once_where_they_are_kept_and_the_model_runs_in_parts(
    cache_mib: int, reason: str | None, once: bool
) -> None:
    async with running(FakeEngine(runs_whole_because=reason), prefix_cache_mib=cache_mib) as server:
        assert server.app.state.service.predictor().reads_beginnings_once == once


async def test_a_batch_equals_its_questions_alone(server: Running) -> None:
    questions = [{"prompt": f"question {i}", "seed": i % 2 or None} for i in range(12)]
    together = await server.client.post("/v1/predict", json={"inputs": questions})
    for question, entry in zip(questions, together.json()["predictions"], strict=True):
        alone = await ask(server, **question)
        assert entry["probabilities"] == alone["probabilities"]


async def test_two_hundred_at_once_are_all_answered_each_with_its_own(server: Running) -> None:
    async def one(i: int) -> None:
        first = (i + 1) / 202
        answer = await ask(server, prompt=f"p={first} x", adapter=("triage", "open")[i % 2], choices=list(CHOICES))
        assert answer["probabilities"][0]["probability"] == pytest.approx(first)

    await asyncio.gather(*map(one, range(200)))


async def test_draws_above_the_cap_are_refused_at_the_cap_they_are_not(engine: FakeEngine) -> None:
    async with running(engine, n_samples_cap=8) as server:
        assert (await ask(server, prompt="x", n_samples=8))["n_samples"] == 8
        refused = await server.client.post("/v1/predict", json={"prompt": "x", "n_samples": 9})
        assert refused.status_code == 422


async def test_more_work_than_one_input_may_take_gives_413(engine: FakeEngine) -> None:
    """Sixteen passes of 64 tokens make 1024."""
    async with running(engine, max_batch_tokens=64) as server:
        asked = {"prompt": "word " * 33, "n_samples": 32, "seed": 0}
        refused = await server.client.post("/v1/predict", json=asked)
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "too_much_work")
        assert (await ask(server, prompt="word " * 64, n_samples=4))["n_samples"] == 4
        assert "33 tokens x 32 draws, expected at most 1024" in refused.json()["error"]["message"]


async def test_draws_that_the_adapter_has_not_ready_count_what_they_cost(engine: FakeEngine) -> None:
    async with running(engine) as server:
        for body in (
            {"prompt": "two words"},
            {"prompt": "two words", "seed": 1},
            {"prompt": "two words", "n_samples": 5},
        ):
            await server.client.post("/v1/predict", json={"n_samples": 4} | body)
        assert await server.metric("blora_batch_tokens_sum") == 8 + (8 + 4 * 32) + (10 + 5 * 32)


async def test_draws_of_a_large_adapter_count_more() -> None:
    width = 40_000  # 640,000 weights at rank 8, as many as 8 tokens take
    async with running(FakeEngine((handle("triage", TRIAGE_DIGEST, choices=CHOICES, width=width),))) as server:
        await ask(server, prompt="two words", n_samples=4, seed=1)
        assert await server.metric("blora_batch_tokens_sum") == 8 + 4 * (32 + 8)


async def test_draws_beyond_the_memory_of_an_adapter_are_refused() -> None:
    engine = FakeEngine((handle("triage", TRIAGE_DIGEST, choices=CHOICES, width=2**15),))
    async with running(engine, max_adapter_memory_mib=64) as server:
        assert (await ask(server, prompt="x", n_samples=4, seed=1))["n_samples"] == 4
        assert (await ask(server, prompt="x", n_samples=4))["n_samples"] == 4
        refused = await server.client.post("/v1/predict", json={"prompt": "x", "n_samples": 64})
    assert refused.status_code == 422
    error = refused.json()["error"]
    assert (error["code"], error["param"]) == ("out_of_range", "n_samples")
    assert "expected at most 64, the server's --max-adapter-memory-mib: ask for fewer" in error["message"]


@pytest.mark.parametrize(("fields", "param"), [({"seed": 1}, "seed"), ({"n_samples": 5}, "n_samples")])
async def test_draws_that_an_engine_cannot_make_are_refused(fields: dict[str, int], param: str) -> None:
    async with running(FakeEngine(fresh_draws=False)) as server:
        refused = await server.client.post("/v1/predict", json={"prompt": "x", **fields})
        assert (await ask(server, prompt="x", seed=0, n_samples=3))["n_samples"] == 3
    error = refused.json()["error"]
    assert (refused.status_code, error["code"], error["param"]) == (422, "out_of_range", param)


async def test_a_deadline_gives_504(engine: FakeEngine) -> None:
    async with running(engine, timeout_s=0.05) as server:
        engine.gate.clear()
        response = await server.client.post("/v1/predict", json={"prompt": "x"})
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        engine.gate.set()


async def test_a_full_queue_gives_429_and_stays_alive(engine: FakeEngine) -> None:
    async with running(engine, max_queue_requests=2) as server:
        engine.gate.clear()
        first = asyncio.create_task(ask(server, prompt="held"))
        await engine.computing.wait()
        waiting = [asyncio.create_task(ask(server, prompt=f"waiting {i}")) for i in range(2)]
        while await server.metric("blora_queue_depth") < 2:
            await asyncio.sleep(0)
        refused = await server.client.post("/v1/predict", json={"prompt": "x"})
        assert (refused.status_code, refused.json()["error"]["code"]) == (429, "queue_full")
        assert int(refused.headers["retry-after"]) >= 1
        for path in ("/livez", "/readyz"):
            assert (await server.client.get(path)).status_code == 200
        engine.gate.set()
        await asyncio.gather(first, *waiting)


async def flood(engine: FakeEngine, keys: Path, **settings: Any) -> None:
    """Ask "flood0" to "flood7" with one key, then "rare" with another one, all of which wait until the gate opens."""
    keys.write_text("\n".join(line_of(name, "predict", name) for name in ("flood", "rare")))
    asked = [("flood", f"flood{k}") for k in range(8)] + [("rare", "rare")]
    async with running(engine, api_keys=keys, **settings) as server:
        engine.gate.clear()
        tasks = []
        for key, prompt in asked:
            headers = {"authorization": f"Bearer {key}"}
            posted = server.client.post("/v1/predict", json={"prompt": prompt}, headers=headers)
            tasks.append(asyncio.create_task(posted))
            for _ in range(100):
                await asyncio.sleep(0)
        engine.gate.set()
        assert {response.status_code for response in await asyncio.gather(*tasks)} == {200}


async def test_clients_of_one_adapter_take_turns_at_being_computed(engine: FakeEngine, tmp_path: Path) -> None:
    await flood(engine, tmp_path / "keys", max_batch_tokens=4)
    assert [texts for texts in engine.batches if "flood" in texts[0]] == [[f"flood{k}"] for k in range(8)]
    assert ["rare"] in engine.batches[:3]


async def test_answers_of_an_adapter_whose_calibration_does_not_hold_say_so() -> None:
    policy = Policy(min_confidence=0.8)
    adapters = (
        handle("triage", TRIAGE_DIGEST, choices=CHOICES, policy=policy, not_calibrated=True),
        handle("open", OPEN_DIGEST),
    )
    async with running(FakeEngine(adapters)) as server:
        for prompt, answer in (("p=0.9 x", CHOICES[0]), ("p=0.7 x", None)):
            body = (await server.client.post("/v1/predict", json={"prompt": prompt, "adapter": "triage"})).json()
            assert (body["answer"], body["warnings"]) == (answer, ["not_calibrated"])
            assert "target_risk" not in body["policy"]
        other = {"prompt": "p=0.9 x", "adapter": "open", "choices": list(CHOICES)}
        assert "warnings" not in (await server.client.post("/v1/predict", json=other)).json()


async def test_an_answer_of_mostly_guesses_says_so_and_keeps_the_mutual_information_of_its_draws() -> None:
    async with running(FakeEngine()) as server:

        async def ask(prompt: str) -> dict[str, Any]:
            asked = {"prompt": prompt, "adapter": "triage", "return_samples": True}
            return (await server.client.post("/v1/predict", json=asked)).json()

        plain, far = await ask("p=0.9 x"), await ask("p=0.9 g=0.95 x")
        assert "warnings" not in plain
        assert far["warnings"] == ["mostly_guesses"]
        assert far["confidence"] == pytest.approx(0.05 * 0.9 + 0.95 / len(CHOICES))
        assert far["predictive_entropy"] > plain["predictive_entropy"]
        assert (far["mutual_information"], far["samples"]) == (plain["mutual_information"], plain["samples"])
