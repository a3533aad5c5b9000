"""Requests of many questions about a long text, which alone fill the queues of a server."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from blora.base_model import BaseModel
from blora.config import HeadConfig, ScoringName
from blora.inference.packing import pack
from blora.questions.wording import question_text
from blora.server.engines.handle import AdapterHandle
from blora.server.prediction.decisions.answering import _parts, _Plan
from blora.server.prediction.decisions.question import Question
from blora.server.schemas.requests import PredictRequest
from tests.server.decision_models import engine, family, predicate
from tests.server.fakes import FakeEngine, FakeRow, Running, running

N_QUESTIONS = 32


@dataclass
class SlowEngine(FakeEngine):
    """An engine that takes a while to tokenise a text."""

    async def pack(self, *args: Any, **options: Any) -> FakeRow:
        await asyncio.sleep(0)
        return await super().pack(*args, **options)


async def asked(server: Running, text: str) -> int:
    """Return the status of a request of 32 questions about a text."""
    body = {"model": "triage", "input": text, "questions": [predicate(name="urgent")] * N_QUESTIONS}
    response = await server.client.post("/v1/decisions", json=body)
    return response.status_code


@pytest.mark.parametrize("n_words", [40, 250, 900])
async def test_many_questions_whose_draws_do_not_fit_the_queue_together_are_answered(n_words: int) -> None:
    async with running(engine(), max_queue_tokens=4096) as server:  # each word is a token, under 4 draws
        assert await asked(server, "word " * n_words) == 200


async def test_many_questions_do_not_fill_the_queue_of_inputs() -> None:
    async with running(engine(), max_queue_requests=16) as server:
        assert await asked(server, "word") == 200


@pytest.mark.parametrize(("length", "status"), [(200, 200), (3000, 200), (250_000, 413)])
async def test_many_questions_about_a_text_get_the_status_of_one_however_long_it_is(length: int, status: int) -> None:
    slow = SlowEngine(handles=family(), longest_token=10)
    async with running(slow, max_queue_characters=6000) as server:
        assert await asked(server, "a" * length) == status


@pytest.mark.parametrize("limits", [{"max_input_passes": 1}, {"max_queue_tokens": 64}])
async def test_a_question_that_is_too_much_work_is_named_and_told_what_its_request_can_change(
    limits: dict[str, int],
) -> None:
    async with running(engine(), max_batch_tokens=64, **limits) as server:
        questions = [predicate(instructions="Is it?"), predicate(instructions="Is it so, as far as one can tell?")]
        body = {"model": "open", "input": "word " * 12, "questions": questions}  # each word is a token, under 4 draws
        response = await server.client.post("/v1/decisions", json=body)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (413, "questions[1]")
    assert "64 in" in error["message"]
    assert "shorten the prompt or the choices, or ask for fewer draws (n_samples in /v1/predict)" in error["message"]


def with_head(handle: AdapterHandle, template: str = "{prompt}") -> AdapterHandle:
    """Return a handle whose adapter answers by a head."""
    head = HeadConfig(depths=(1,), n_states=8, n_directions=2, n_grams=0)
    prompt = replace(handle.config.prompt, template=template, readout="linear", choice_end="newline")
    posterior = replace(handle.config.posterior, method="lora")
    return replace(handle, config=replace(handle.config, head=head, prompt=prompt, posterior=posterior))


def room_for(most: float, *, once: bool = True) -> Any:
    """Return a predictor whose queues have room for so many tokens."""
    return SimpleNamespace(reads_beginnings_once=once, leaves_room=lambda n_inputs, characters, cost: cost <= most)


def plans_for(handle: AdapterHandle, text: str, instructions: Sequence[str]) -> list[_Plan]:
    """Return plans of questions about a text."""
    request = PredictRequest(prompt=text)
    return [
        _Plan(
            Question(path=f"questions[{i}]", type="predicate", instructions=said, options=()), handle, request, (), said
        )
        for i, said in enumerate(instructions)
    ]


@pytest.mark.parametrize("head", [False, True])
def test_what_heads_read_of_a_text_counts_once(head: bool) -> None:
    text, (urgent, *_) = "word " * 900, family()
    plans = plans_for(with_head(urgent) if head else urgent, text, [""] * 10)
    assert [len(part) for part in _parts(plans, text, room_for(2 * len(text)))] == ([10] if head else [1] * 10)


@pytest.mark.parametrize(("template", "parts"), [("{prompt}", [10]), ("{prompt}\n{prompt}", [2] * 5)])
def test_only_the_first_time_that_different_prompts_hold_a_text_counts_once(template: str, parts: list[int]) -> None:
    text, (urgent, *_) = "word " * 900, family()
    plans = plans_for(with_head(urgent, template), text, [f"Question {i}?" for i in range(10)])
    assert [len(part) for part in _parts(plans, text, room_for(3.5 * len(text)))] == parts


def test_a_text_that_a_template_holds_twice_counts_twice() -> None:
    text, (urgent, *_) = "word " * 900, family()
    plans = plans_for(with_head(urgent, "{prompt}\n{prompt}"), text, ["", "Urgent?"])
    for once, most, parts in ((True, 2.5, [1, 1]), (True, 3.5, [2]), (False, 3.5, [1, 1]), (False, 4.5, [2])):
        assert [len(part) for part in _parts(plans, text, room_for(most * len(text), once=once))] == parts


@pytest.mark.model
@pytest.mark.parametrize("template", ["{prompt}", "{prompt}\n{prompt}"])
@pytest.mark.parametrize("scoring", ["text", "label"])
def test_costs_bound_the_tokens_of_a_row(template: str, scoring: ScoringName, smollm2: BaseModel) -> None:
    digits, open_one = "0123456789" * 30, family()[-2]  # each digit is a token
    prompt = replace(open_one.config.prompt, template=template, scoring=scoring)
    handle = replace(open_one, config=replace(open_one.config, prompt=prompt))
    request = PredictRequest(prompt="Ticket 1", choices=[f"{digits}1", f"{digits}2"])
    question = Question(path="questions[0]", type="choice", instructions=f"Reply to {digits}", options=())
    plan = _Plan(question, handle, request, (), question.instructions)
    asked = question_text("Ticket 1", plan.instructions)
    row = pack(smollm2.tokenizer, prompt=asked, choices=plan.choices, config=prompt, max_length=smollm2.max_length)
    for once in (False, True):
        bound = sum(plan.costs(len("Ticket 1"), once=once).values())
        assert bound >= handle.config.sampling.n_samples * row.n_tokens
