"""POST /v1/decisions: answers, their fields, and their dependence on the request."""

import asyncio
import tracemalloc
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from blora.config import PromptConfig
from blora.decision.abstention import Policy
from blora.server.engines.handle import AdapterHandle
from blora.server.prediction.decisions import answering
from blora.server.prediction.decisions.question import Question
from blora.server.prediction.decisions.recognition import Recognised, recognise
from blora.server.prediction.decisions.statistics import concentration, level_confidence
from tests.server.calibrations import calibration
from tests.server.decision_models import LEVELS, choice, digest, engine, predicate, score
from tests.server.fakes import CHOICES, FakeEngine, Running, fake_probabilities, running

OURS = {
    *("id", "abstained", "abstain_reasons", "calibrated", "uncalibrated_because", "policy", "adapter", "n_samples"),
    *("predictive_entropy", "expected_entropy", "mutual_information", "margin", "prediction_set"),
}
TEXT = "I was charged twice"


async def ask(server: Running, *questions: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """Return the response to a valid request."""
    body = {"model": "triage", "input": TEXT, "questions": list(questions), **fields}
    response = await server.client.post("/v1/decisions", json=body)
    assert response.status_code == 200, response.text
    found: dict[str, Any] = response.json()
    return found


async def predicted(server: Running, adapter: str, text: str = TEXT, **fields: Any) -> dict[str, Any]:
    response = await server.client.post("/v1/predict", json={"adapter": adapter, "prompt": text, **fields})
    found: dict[str, Any] = response.json()
    return found


async def test_three_questions_have_the_answers_of_three_adapters(server: Running) -> None:
    body = await ask(server, choice(*CHOICES, name="queue"), predicate(name="urgent"), score(*LEVELS, name="mood"))
    assert body.keys() == {"model", "answers", "usage"}
    assert body["model"] == "triage"
    queue, urgent, mood = body["answers"]
    assert queue.keys() == {"type", "name", "choice", "probabilities", "confidence"} | OURS
    assert urgent.keys() == {"type", "name", "probability", "std"} | OURS
    assert mood.keys() == {"type", "name", "score", "score_std", "probabilities", "confidence"} | OURS
    assert [answer["name"] for answer in body["answers"]] == ["queue", "urgent", "mood"]
    for answer, adapter in zip(body["answers"], ("triage", "triage.urgent", "triage.mood"), strict=True):
        alone = await predicted(server, adapter)
        assert answer["adapter"] == alone["adapter"]
        for name in OURS - {"id", "calibrated", "uncalibrated_because"}:
            assert answer[name] == alone[name]
    alone = await predicted(server, "triage")
    assert queue["choice"] == alone["answer"]
    assert queue["probabilities"] == [
        {"value": entry["choice"], "probability": entry["probability"], "std": entry["std"]}
        for entry in alone["probabilities"]
    ]
    first = (await predicted(server, "triage.urgent"))["probabilities"][0]
    assert (urgent["probability"], urgent["std"]) == (first["probability"], first["std"])
    levels = [entry["probability"] for entry in (await predicted(server, "triage.mood"))["probabilities"]]
    assert [(entry["value"], entry["label"]) for entry in mood["probabilities"]] == list(enumerate(LEVELS))
    assert mood["score"] == pytest.approx(levels[1] + 2 * levels[2])
    assert mood["confidence"] == pytest.approx(level_confidence(levels))
    assert queue["confidence"] == pytest.approx(concentration([p["probability"] for p in queue["probabilities"]]))


async def test_a_score_has_its_spread_over_the_draws_in_the_order_of_its_levels(server: Running) -> None:
    [mood] = (await ask(server, score(*LEVELS, name="mood")))["answers"]
    asked = {"model": "triage", "state": TEXT, "questions": {"mood": {"type": "score", "criteria": list(LEVELS)}}}
    other = (await server.client.post("/v1/systemone", json=asked)).json()["answers"]["mood"]
    samples = torch.tensor((await predicted(server, "triage.mood", return_samples=True))["samples"]).double()
    scores = samples @ torch.arange(3).double()
    assert mood["score_std"] == other["score_std"] == pytest.approx(scores.std(correction=0).item())
    assert mood["score_std"] > 0
    assert "samples" not in mood.keys() | other.keys()


async def test_a_score_that_is_no_adapters_own_has_its_spread_too(server: Running) -> None:
    [mood] = (await ask(server, score(*LEVELS, instructions="How angry?"), model="open"))["answers"]
    asked = {"choices": list(LEVELS), "return_samples": True}
    samples = torch.tensor((await predicted(server, "open", f"{TEXT}\n\nHow angry?", **asked))["samples"]).double()
    scores = samples @ torch.arange(3).double()
    assert mood["score_std"] == pytest.approx(scores.std(correction=0).item())
    assert mood["score_std"] > 0


async def test_questions_about_one_text_share_a_pass(server: Running) -> None:
    server.engine.batches.clear()
    await ask(server, choice(*CHOICES, name="queue"), predicate(name="urgent"), score(*LEVELS, name="mood"))
    assert server.engine.batches == [[TEXT] * 3]


async def test_a_question_that_cannot_be_packed_holds_up_no_other(server: Running) -> None:
    body = {"model": "triage", "input": "UNPACKABLE", "questions": [predicate(name="urgent"), predicate(name="urgent")]}
    response = await asyncio.wait_for(server.client.post("/v1/decisions", json=body), 10)
    assert (response.status_code, response.json()["error"]["param"]) == (422, "input")


async def test_usage_counts_a_text_once(server: Running) -> None:
    body = await ask(server, predicate(name="urgent"), predicate(name="urgent"), score(*LEVELS, name="mood"))
    assert body["usage"] == {
        "input_tokens": 4,
        "input_tokens_details": {"cached_tokens": 0, "cache_write_tokens": 0},
        "output_tokens": 0,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": 4,
    }
    two = await ask(server, predicate(instructions="Is it?"), predicate(instructions="Was it so?"), model="open")
    assert two["usage"]["input_tokens"] == (4 + 2) + (4 + 3)


@pytest.mark.parametrize(("model", "n_texts"), [("triage", 1), ("open", 2)])
async def test_usage_counts_cached_tokens_of_each_text_once(server: Running, model: str, n_texts: int) -> None:
    questions = [predicate(name="urgent", instructions="Is it?"), predicate(name="urgent2", instructions="Was it so?")]
    asked = questions if model == "open" else questions[:1] * 2
    body = {"model": model, "input": f"{TEXT} cached=2", "questions": asked}
    usage = (await server.client.post("/v1/decisions", json=body)).json()["usage"]
    assert usage["input_tokens_details"]["cached_tokens"] == 2 * n_texts


async def test_the_order_of_choices_is_the_requests_and_their_probabilities_the_adapters(server: Running) -> None:
    shuffled = ("account", "billing", "technical")
    [[one], [other]] = [(await ask(server, choice(*values, name="queue")))["answers"] for values in (CHOICES, shuffled)]
    assert [entry["value"] for entry in other["probabilities"]] == list(shuffled)
    by_value = [{entry["value"]: entry["probability"] for entry in answer["probabilities"]} for answer in (one, other)]
    assert by_value[0] == by_value[1]
    assert one["choice"] == other["choice"]


async def test_texts_that_list_different_letters_count_apart() -> None:
    prompt = PromptConfig(scoring="label")
    family = [
        replace(h, config=replace(h.config, prompt=replace(prompt, choices=h.config.prompt.choices)))
        for h in engine().handles
    ]
    async with running(FakeEngine(handles=tuple(family))) as server:
        asked = [choice(*CHOICES, name="queue"), predicate(name="urgent"), predicate(name="urgent")]
        assert (await ask(server, *asked))["usage"]["input_tokens"] == 4 + 4


@pytest.mark.parametrize("path", ["/v1/decisions", "/v1/systemone"])
async def test_answers_say_whether_their_outcome_is_asked_for(path: str) -> None:
    async with running(engine(), feedback_rate=0.5) as server:
        bodies = {
            "/v1/decisions": {"input": TEXT, "questions": [predicate(name="urgent")] * 40},
            "/v1/systemone": {
                "state": TEXT,
                "questions": {
                    f"q{k}": {"type": "noul", "instructions": "Does it have to be answered today?"} for k in range(40)
                },
            },
        }
        found = (await server.client.post(path, json={"model": "triage", **bodies[path]})).json()["answers"]
        answers = found if isinstance(found, list) else [*found.values()]
        assert {answer["feedback_requested"] for answer in answers} == {True, False}


async def test_siblings_change_nothing(server: Running) -> None:
    questions = [choice(*CHOICES, name="queue"), predicate(name="urgent"), score(*LEVELS, name="mood")]

    def plain(answer: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in answer.items() if name != "id"}

    together = [plain(answer) for answer in (await ask(server, *questions))["answers"]]
    back = [plain(answer) for answer in (await ask(server, *reversed(questions)))["answers"]]
    alone = [plain((await ask(server, question))["answers"][0]) for question in questions]
    assert together == back[::-1] == alone


async def test_four_hundred_questions_are_answered(server: Running) -> None:
    values = [f"value {i}" for i in range(255)]
    body = await ask(server, *[predicate(name=str(i)) for i in range(399)], choice(*values), model="open")
    assert [answer["name"] for answer in body["answers"]] == [*map(str, range(399)), None]
    assert [entry["value"] for entry in body["answers"][-1]["probabilities"]] == values


async def test_an_open_model_reads_input_instructions_and_descriptions(server: Running) -> None:
    described = [{"value": "a", "description": "the first"}, {"value": "b"}]
    body = await ask(server, choice(choices=described, instructions="Which one?"), model="open")
    text, texts = f"{TEXT}\n\nWhich one?", ["a: the first", "b"]
    alone = await predicted(server, "open", text, choices=texts)
    [answer] = body["answers"]
    assert [entry["probability"] for entry in answer["probabilities"]] == [
        entry["probability"] for entry in alone["probabilities"]
    ]
    assert [entry["value"] for entry in answer["probabilities"]] == ["a", "b"]
    assert answer["choice"] == alone["answer"][0]


async def test_booleans_stay_booleans_beside_equal_texts(server: Running) -> None:
    body = await ask(server, choice(True, "true", False), model="open", input="p=0.8 x")
    [answer] = body["answers"]
    assert answer["choice"] is True
    assert [entry["value"] for entry in answer["probabilities"]] == [True, "true", False]


async def test_several_messages_are_one_text(server: Running) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
    ]
    [answer] = (await ask(server, predicate(name="urgent"), input=turns))["answers"]
    probs = fake_probabilities("system: Be brief.\n\nuser: Hello", 2, 4, None).mean(0)
    assert answer["probability"] == pytest.approx(probs[0].item())


async def test_an_abstention_is_beside_the_full_answer_unless_a_refusal_is_asked_for() -> None:
    async with running(engine(policy=Policy(min_confidence=0.8))) as server:
        questions = (choice(*CHOICES, name="queue"), predicate(name="urgent"))
        [queue, urgent] = (await ask(server, *questions, input="p=0.7 x"))["answers"]
        assert (queue["type"], queue["choice"], queue["abstained"]) == ("choice", "billing", True)
        reason = {"reason": "low_confidence", "value": pytest.approx(0.7), "threshold": 0.8}
        assert queue["abstain_reasons"] == [reason]
        assert not urgent["abstained"]
        [refused, urgent] = (await ask(server, *questions, input="p=0.7 x", refuse=True))["answers"]
        assert (refused["type"], refused["name"], refused["abstain_reasons"]) == ("refusal", "queue", [reason])
        assert not {"choice", "probabilities", "confidence", "margin", "prediction_set"} & refused.keys()
        assert urgent["type"] == "predicate"
        [sure, _] = (await ask(server, *questions, input="p=0.9 x", refuse=True))["answers"]
        assert sure["choice"] == "billing"


async def test_a_server_may_refuse_unless_the_request_wants_the_full_answer() -> None:
    async with running(engine(policy=Policy(min_confidence=0.8)), refuse_abstentions=True) as server:
        question = choice(*CHOICES, name="queue")
        [refused] = (await ask(server, question, input="p=0.7 x"))["answers"]
        assert refused["type"] == "refusal"
        [full] = (await ask(server, question, input="p=0.7 x", refuse=False))["answers"]
        assert (full["type"], full["abstained"]) == ("choice", True)


async def test_the_requests_policy_holds_for_all_questions(server: Running) -> None:
    questions = (choice(*CHOICES, name="queue"), predicate(name="urgent"))
    answers = (await ask(server, *questions, input="p=0.7 x", policy={"min_confidence": 0.8}))["answers"]
    assert [answer["abstained"] for answer in answers] == [True, True]
    assert answers[0]["policy"] == {"min_confidence": 0.8, "source": "request"}


async def test_a_calibrated_question_says_so_in_any_order_of_its_choices() -> None:
    async with running(engine(calibration=calibration(digest(1)))) as server:
        question = choice("account", "technical", "billing", name="queue")
        [answer, other] = (await ask(server, question, predicate(name="urgent"), input="p=0.5 x"))["answers"]
        assert (answer["calibrated"], answer["uncalibrated_because"]) == (True, None)
        assert answer["policy"] == {"min_confidence": 0.9, "target_risk": 0.05, "source": "adapter"}
        assert answer["abstained"]
        assert answer["prediction_set"] == ["account", "technical", "billing"]
        assert (other["calibrated"], other["uncalibrated_because"]) == (
            False,
            "Adapter 'triage.urgent' has no calibration.",
        )


async def test_a_calibration_that_does_not_hold_as_it_is_served_is_told_so() -> None:
    async with running(engine(not_calibrated=True)) as server:
        [answer] = (await ask(server, choice(*CHOICES, name="queue")))["answers"]
    assert (answer["calibrated"], answer["uncalibrated_because"]) == (
        False,
        "The calibration of adapter 'triage' does not hold for the way it is served.",
    )


async def test_an_open_models_calibration_covers_what_it_was_made_for(server: Running) -> None:
    [covered] = (await ask(server, choice("a", "b", "c"), model="open2to3"))["answers"]
    assert covered["calibrated"]
    body = {"model": "open2to3", "input": TEXT, "questions": [predicate(), choice("a", "b", "c", "d")]}
    refused = await server.client.post("/v1/decisions", json=body)
    assert (refused.status_code, refused.json()["error"]["code"]) == (422, "not_calibrated")
    assert refused.json()["error"]["param"] == "questions[1]"
    own = await server.client.post("/v1/decisions", json={**body, "policy": {"min_confidence": 0.5}})
    [first, second] = own.json()["answers"]
    assert (first["calibrated"], second["calibrated"]) == (True, False)
    assert "2 to 3 choices" in second["uncalibrated_because"]
    assert second["prediction_set"] is None


async def test_questions_are_computed_together(server: Running) -> None:
    server.engine.batches.clear()
    await ask(server, *[predicate(instructions=f"Is it {i}?") for i in range(12)], model="open")
    assert len(server.engine.batches) <= 3


async def test_a_request_is_answered_by_one_deadline() -> None:
    slow = engine()
    async with running(slow, timeout_s=0.1) as server:
        slow.gate.clear()
        body = {"model": "open", "input": TEXT, "questions": [predicate(instructions=f"{i}?") for i in range(100)]}
        started = asyncio.get_running_loop().time()
        response = await server.client.post("/v1/decisions", json=body)
        assert asyncio.get_running_loop().time() - started < 2
        assert (response.status_code, response.json()["error"]["code"]) == (504, "deadline_exceeded")
        slow.gate.set()


async def test_a_long_text_is_not_copied_for_every_question(server: Running) -> None:
    text = "a" * 500_000 + "\N{GRINNING FACE}"  # four bytes for each character in memory
    body = {"model": "open", "input": text, "questions": [predicate() for _ in range(400)]}
    tracemalloc.start()
    try:
        response = await server.client.post("/v1/decisions", json=body)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert (response.status_code, response.json()["error"]["param"]) == (413, "input")
    assert peak < 150 * 2**20  # 400 copies would take 800 MB


async def test_other_requests_get_a_turn_between_two_questions(
    server: Running, monkeypatch: pytest.MonkeyPatch
) -> None:
    n_turns, seen = 0, []

    async def take_turns() -> None:
        nonlocal n_turns
        while True:
            n_turns += 1
            await asyncio.sleep(0)

    def counting(question: Question, members: Sequence[AdapterHandle]) -> Recognised | None:
        seen.append(n_turns)
        return recognise(question, members)

    monkeypatch.setattr(answering, "recognise", counting)
    others = asyncio.create_task(take_turns())
    await ask(server, *[predicate(name="urgent")] * 20)
    others.cancel()
    assert len(set(seen)) == 20
