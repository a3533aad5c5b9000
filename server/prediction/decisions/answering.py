"""Answers to the questions of one request, from the adapters of a model."""

import asyncio
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from operator import attrgetter

from pydantic import ValidationError

from blora.client import answers
from blora.questions.wording import choice_text, question_text
from blora.server.engines.handle import AdapterHandle
from blora.server.errors import InvalidRequestError, ServerError, TooLargeError
from blora.server.monitoring.recent_texts import AskedText
from blora.server.prediction.decisions.labels import further_labels
from blora.server.prediction.decisions.question import Question, spelled
from blora.server.prediction.decisions.recognition import Family, open_member, recognise
from blora.server.prediction.decisions.statistics import level_std
from blora.server.prediction.policies import Wording, uncalibrated_because
from blora.server.prediction.predictor import Predictor
from blora.server.prediction.siblings import Siblings, siblings_of_a_request
from blora.server.prediction.together import Together
from blora.server.schemas.requests import Policy, PredictRequest
from blora.server.schemas.validation import invalid_request

__all__ = ["Answer", "AnsweredRequest", "answer_questions"]

# Most questions of a request that are in work at the same time. They are queued together, so that those about one text
# share the pass over it.
_MOST_AT_ONCE = 32


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to one question.

    Attributes:
        question: the question.
        prediction: the answer as of /v1/predict, in the adapter's words and order.
        places: for each option of the question, its place among the prediction's choices.
        uncalibrated_because: why the adapter's calibration does not cover the answer; None if it does.
        score_std: standard deviation of a score's mean level over the draws; 0 for other questions.
    """

    question: Question
    prediction: answers.Prediction
    places: tuple[int, ...]
    uncalibrated_because: str | None
    score_std: float

    @property
    def probabilities(self) -> list[float]:
        """The probability of each option, in the question's order."""
        return [self.prediction.probabilities[place].probability for place in self.places]

    @property
    def stds(self) -> list[float]:
        """The standard deviation of each option's probability over the draws, in the question's order."""
        return [self.prediction.probabilities[place].std for place in self.places]

    @property
    def top(self) -> str | bool:
        """The value of the leading option."""
        return next(value for value, text in self._texts() if text == self.prediction.top_choice)

    @property
    def prediction_set(self) -> list[str | bool] | None:
        """The values of the prediction set, in the question's order; None where the calibration gives none."""
        likely = self.prediction.prediction_set
        return None if likely is None else [value for value, text in self._texts() if text in likely]

    def _texts(self) -> list[tuple[str | bool, str]]:
        """Return each option's value and the adapter's text for it."""
        texts = [self.prediction.probabilities[place].choice for place in self.places]
        return [(option.value, text) for option, text in zip(self.question.options, texts, strict=True)]


@dataclass(frozen=True, slots=True)
class AnsweredRequest:
    """The answers to the questions of a request, in their order.

    Attributes:
        model: the model's name.
        answers: the answers.
        input_tokens: tokens of the different texts that were read.
        cached_tokens: those of them that an earlier batch had computed.
    """

    model: str
    answers: list[Answer]
    input_tokens: int
    cached_tokens: int


@dataclass(frozen=True, slots=True)
class _Plan:
    """A question as an adapter reads it.

    Attributes:
        question: the question.
        handle: the adapter.
        request: the text, and the question's choices if they are not the adapter's own.
        places: see `Answer`.
        instructions: text that follows in the prompt; empty for the adapter's own question.
        other_wording: what the request words differently from the adapter's own question; None for nothing.
        unchecked: see `Recognised`.
    """

    question: Question
    handle: AdapterHandle
    request: PredictRequest
    places: tuple[int, ...]
    instructions: str = ""
    other_wording: Wording | None = None
    unchecked: bool = False

    @property
    def choices(self) -> Sequence[str]:
        """The choices as the adapter reads them."""
        return self.request.choices or self.handle.config.prompt.choices or ()

    @property
    def text(self) -> Hashable:
        """A key of the text that the adapter reads, which differs between questions that are read apart."""
        prompt = self.handle.config.prompt
        listed = self.request.choices or prompt.choices if prompt.scoring == "label" else None
        return self.instructions, prompt.template, tuple(listed or ())

    @property
    def beside(self) -> str:
        """The template, instructions and choices, which the adapter reads beside the text."""
        return "".join([self.handle.config.prompt.template, self.instructions, *self.choices])

    def costs(self, n_bytes: int, *, once: bool) -> dict[Hashable, int]:
        """Return bounds of the tokens x draws, of which those with equal keys count once for several questions.

        Args:
            n_bytes: length of the text in UTF-8; each token has at least one byte.
            once: whether what different prompts begin with is computed once for heads of one reading.
        """
        config, path = self.handle.config, self.question.path
        template = config.prompt.template
        times = template.count("{prompt}")  # it holds the instructions and listed choices as often as the text
        first: Hashable = (path, "text")
        again: Hashable = (path, "text again")
        n_draws = config.sampling.n_samples
        if config.head is not None:
            again, n_draws = (self.handle.reading, self.text, "again"), 1
            first = self.handle.reading, template if once else self.text
        return {
            first: n_draws * n_bytes,
            again: n_draws * n_bytes * (times - 1),
            path: n_draws * times * len(self.beside.encode(errors="replace")),
        }


async def answer_questions(
    predictor: Predictor,
    asked: Family,
    text: str,
    questions: Sequence[Question],
    *,
    other_wording: Wording | None,
    policy: Policy | None,
    deadline: float,
    text_field: str,
) -> AnsweredRequest | ServerError:
    """Return the answers, or the first error of a question, which the predictor has counted.

    Args:
        predictor: answers single questions.
        asked: the adapters of the model whose questions they are.
        text: the text that the questions are about.
        questions: the questions.
        other_wording: what makes the text another one than those of any calibration; None for nothing.
        policy: the request's policy for all of them; None for the adapters' own.
        deadline: time of the event loop by which they are answered.
        text_field: the text's field in the request, for error messages.

    Raises:
        ServerError: before a question is asked: the model does not answer one of the questions.
    """
    plans = []
    for question in questions:
        await asyncio.sleep(0)  # recognising and checking many questions takes time that other requests need
        if (recognised := recognise(question, asked.members)) is not None:
            request = PredictRequest(prompt=text, policy=policy, return_samples=question.type == "score")
            handle, places, of_question, unchecked = recognised
            differs = other_wording or of_question  # the input first, which the adapter reads
            plans.append(_Plan(question, handle, request, places, other_wording=differs, unchecked=unchecked))
        else:
            handle, places = open_member(question, asked), tuple(range(len(question.options)))
            request = _open_request(question, text, policy)
            plans.append(_Plan(question, handle, request, places, question.instructions, other_wording))

    for plan in plans:  # before any part, so that most refusals cost no pass
        await asyncio.sleep(0)
        if (error := predictor.check(plan.request, plan.handle, plan.other_wording)) is not None:
            error.param = _param(error, plan, text, text_field)
            return error

    async def ask(plan: _Plan, together: Together, siblings: Siblings) -> answers.Prediction:
        # Only now, because each prompt with instructions is a copy of the text.
        request = plan.request.model_copy(update={"prompt": question_text(text, plan.instructions)})
        labels = further_labels(plan.question, plan.choices, plan.places)
        with together.expected() as member:
            outcome = await predictor.predict(
                request,
                handle=plan.handle,
                deadline=deadline,
                siblings=siblings,
                member=member,
                labels=labels,
                other_wording=plan.other_wording,
            )
        if isinstance(outcome, ServerError):
            outcome.param = _param(outcome, plan, text, text_field)
            together.failure = together.failure or outcome
            raise outcome
        return outcome

    about = AskedText(text)
    found: list[Answer] = []
    read: dict[Hashable, answers.Usage] = {}  # by text
    with siblings_of_a_request() as siblings:
        for part in _parts(plans, text, predictor):
            together = Together(len(part), about=about, beginnings=predictor.reads_beginnings_once)
            try:
                async with asyncio.TaskGroup() as group:  # the first error cancels the other questions
                    tasks = [group.create_task(ask(plan, together, siblings)) for plan in part]
            except* ServerError:
                pass  # the first one is the failure of them all
            if together.failure is not None:
                return together.failure
            for plan, task in zip(part, tasks, strict=True):
                await asyncio.sleep(0)  # the spread of a score under many draws takes time that other requests need
                outcome, score_std = _summed_up(task.result(), plan)
                why = uncalibrated_because(plan.request, plan.handle, plan.other_wording)
                found.append(Answer(plan.question, outcome, plan.places, why, score_std))
                read.setdefault(plan.text, outcome.usage)
        requested = await siblings.record()
    found = [
        replace(answer, prediction=predictor.asking(answer.prediction, requested[answer.prediction.id]))
        for answer in found
    ]
    n_tokens, cached = (sum(map(attrgetter(name), read.values())) for name in ("prompt_tokens", "cached_tokens"))
    return AnsweredRequest(asked.name, found, n_tokens, cached)


def _parts(plans: Iterable[_Plan], text: str, predictor: Predictor) -> Iterator[list[_Plan]]:
    """Yield the questions in order, in parts that leave room in the queues, or of one question."""
    n_bytes = len(text.encode(errors="replace"))
    part: list[_Plan] = []
    characters, costs = 0, dict[Hashable, int]()
    for plan in plans:
        more, added = len(text) + len(plan.beside), plan.costs(n_bytes, once=predictor.reads_beginnings_once)
        if part and (
            len(part) == _MOST_AT_ONCE
            or not predictor.leaves_room(len(part) + 1, characters + more, sum((costs | added).values()))
        ):
            yield part
            part, characters, costs = [], 0, {}
        part.append(plan)
        characters += more
        costs |= added
    yield part


def _summed_up(outcome: answers.Prediction, plan: _Plan) -> tuple[answers.Prediction, float]:
    """Return an outcome without its samples, of which many would fill the memory, and the spread of the mean level."""
    std = level_std(outcome.samples, plan.places) if outcome.samples is not None else 0.0
    warnings = [*outcome.warnings, *(["unchecked_wording"] if plan.unchecked else [])]
    return outcome.model_copy(update={"samples": None, "warnings": warnings}), std


def _open_request(question: Question, text: str, policy: Policy | None) -> PredictRequest:
    """Return the request to an adapter that takes the choices of a request, without the question's instructions.

    Raises:
        InvalidRequestError: if two options read the same.
    """
    booleans = {spelled(option.value) for option in question.options if isinstance(option.value, bool)}
    choices = []
    for option in question.options:
        value = spelled(option.value)
        if isinstance(option.value, str) and value in booleans:
            value = f'"{value}"'  # the text "true" beside the boolean true
        choices.append(choice_text(value, option.description))
    try:
        return PredictRequest(prompt=text, choices=choices, policy=policy, return_samples=question.type == "score")
    except ValidationError as exc:
        error = invalid_request(exc.errors(include_url=False))
        raise InvalidRequestError(error.message, code=error.code, param=question.path) from exc


def _param(error: ServerError, plan: _Plan, text: str, text_field: str) -> str | None:
    """Return the field of the request that the error of a prediction's request is about."""
    question = plan.question
    match error.param:
        case "prompt":
            return f"{question.path}.instructions" if len(plan.instructions) > len(text) else text_field
        case "input":
            return text_field
        case "adapter":
            return "model"
        case None:
            return question.path if isinstance(error, TooLargeError) else None
        case param if param.startswith("policy"):
            return param
    return question.path
