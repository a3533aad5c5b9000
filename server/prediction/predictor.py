"""The path of a question through the server: adapter, tokens, queue, uncertainty, abstention, answer."""

import asyncio
import logging
from collections.abc import Mapping, Sequence
from functools import partial

from opentelemetry.trace import StatusCode, Tracer, get_current_span

from blora.adapter import adapter_bytes
from blora.client import answers
from blora.errors import NumericalError, PromptError, PromptTooLongError
from blora.inference.packing import PackedRow
from blora.questions.wording import wording
from blora.server.adapters.registry import Registry
from blora.server.engines.handle import AdapterHandle
from blora.server.engines.jobs import shared_reading
from blora.server.engines.protocol import Engine, Job, ModelInfo, Outcome
from blora.server.errors import (
    DeadlineExceededError,
    DisconnectedError,
    EngineUnreachableError,
    InternalError,
    InvalidRequestError,
    ModelFailureError,
    NonFiniteError,
    ServerError,
    TooLargeError,
)
from blora.server.keys import allowed_adapters, client_name
from blora.server.monitoring.feedback import Feedback
from blora.server.monitoring.ledgers.protocol import Label
from blora.server.monitoring.metrics import UNKNOWN_ADAPTER, ServerMetrics
from blora.server.monitoring.recent_texts import AskedText
from blora.server.monitoring.tracing import record_stages
from blora.server.prediction.choices import offered_choices
from blora.server.prediction.decisions.labels import own_labels
from blora.server.prediction.endings import Endings
from blora.server.prediction.policies import InForce, Wording, check_job, policy_for, stop_of
from blora.server.prediction.response import answered
from blora.server.prediction.siblings import Siblings, siblings_of_a_request
from blora.server.prediction.together import Member, Text
from blora.server.prediction.tokenizing import Lengths
from blora.server.scheduling.admission import Owner, Room
from blora.server.scheduling.batcher import Batcher, Completed, Work
from blora.server.scheduling.control import UnavailableError
from blora.server.scheduling.turns import Turns
from blora.server.schemas.requests import MAX_SAMPLE_VALUES, PredictRequest
from blora.server.settings import Settings

__all__ = ["Predictor", "asked_text"]

logger = logging.getLogger(__name__)


class Predictor:
    """Service that answers questions with one base model and its adapters.

    Args:
        model: description of the base model, which answers name.
        registry: the adapters.
        engine: converts questions to rows.
        batcher: computes the probabilities of rows.
        metrics: counts every outcome.
        feedback: stores every prediction for later feedback.
        tracer: records the time of each stage.
        settings: the limits.
    """

    def __init__(
        self,
        *,
        model: ModelInfo,
        registry: Registry,
        engine: Engine,
        batcher: Batcher[Job, Outcome],
        metrics: ServerMetrics,
        feedback: Feedback,
        tracer: Tracer,
        settings: Settings,
    ) -> None:
        self.model = model
        self.registry = registry
        self.feedback = feedback
        self._engine = engine
        self._batcher = batcher
        self._metrics = metrics
        self._endings = Endings(metrics, settings.timeout_s)
        self._tracer = tracer
        self._settings = settings
        self._lengths = Lengths.of(settings, model)
        self._tokenizer_queue = Turns(
            Room(settings.max_queue_requests, settings.max_queue_characters),
            what="texts to be tokenised",
            unit="characters",
        )

    @property
    def reads_beginnings_once(self) -> bool:
        """Return whether what different prompts begin with is computed once."""
        return self._settings.prefix_cache_mib > 0 and self.model.runs_whole_because is None

    def leaves_room(self, n_inputs: int, characters: int, cost: int) -> bool:
        """Return whether inputs take at most half of each queue, so that none is refused because of the others.

        Args:
            n_inputs: number of inputs.
            characters: their characters.
            cost: their tokens x draws.
        """
        queues = self._settings
        return (
            2 * n_inputs <= queues.max_queue_requests
            and 2 * characters <= queues.max_queue_characters
            and 2 * cost <= queues.max_queue_tokens
        )

    async def predict_batch(
        self, questions: Sequence[PredictRequest | InvalidRequestError], *, deadline: float
    ) -> list[answers.Prediction | ServerError]:
        """Return the prediction or the error for each question, in order; questions do not affect one another.

        Raises:
            TooLargeError: if the answers would have too many sample values.
        """
        n_values = sum(map(self._n_sample_values, questions))
        if n_values > MAX_SAMPLE_VALUES:
            raise TooLargeError(
                f"got {n_values} sample values (inputs x draws x choices), expected at most {MAX_SAMPLE_VALUES}: send "
                "several batches, or ask for fewer draws",
                param="return_samples",
            )
        with siblings_of_a_request() as siblings:
            asking = map(partial(self.predict, deadline=deadline, siblings=siblings), questions)
            outcomes = await asyncio.gather(*asking)
            requested = await siblings.record()
        return [
            outcome if isinstance(outcome, ServerError) else self.asking(outcome, requested[outcome.id])
            for outcome in outcomes
        ]

    def deadline(self) -> float:
        """Return the time of the event loop by which a question asked now is answered."""
        return asyncio.get_running_loop().time() + self._settings.timeout_s

    def check(
        self, question: PredictRequest, handle: AdapterHandle, other_wording: Wording | None
    ) -> ServerError | None:
        """Return the error of a question's draws, choices or policy, and count it; None for none.

        Args:
            question: the question.
            handle: the adapter that answers.
            other_wording: see `policy_for`.
        """
        try:
            self._terms(question, handle, other_wording)
        except ServerError as error:
            self._endings.failed(handle.name, error)
            return error
        return None

    async def predict(
        self,
        question: PredictRequest | InvalidRequestError,
        *,
        handle: AdapterHandle | None = None,
        deadline: float | None = None,
        siblings: Siblings | None = None,
        member: Member | None = None,
        labels: Mapping[Label, int] | None = None,
        other_wording: Wording | None = None,
    ) -> answers.Prediction | ServerError:
        """Return the prediction or the error for one question, and count the outcome.

        Args:
            question: the question, or the error of one that cannot be read.
            handle: the adapter that answers; by default the one that the question names, if the key opens it.
            deadline: time of the event loop by which it is answered, the server's timeout after it arrived; by default
                it arrives now.
            siblings: the answers to the same request, with which the prediction is recorded; None for a question alone,
                whose prediction is recorded at once.
            member: the question's place among those of a request that share a text and fail as one; None for a question
                that does neither.
            labels: further labels of the choices for feedback, with the position of each label's choice; by default
                those of the adapter's own question.
            other_wording: what the request words differently from the adapter's own question; None for nothing.
        """
        deadline = deadline or self.deadline()
        adapter, is_timed = UNKNOWN_ADAPTER, True
        try:
            if isinstance(question, InvalidRequestError):
                raise question
            handle = handle or self.registry.resolve(question.adapter, allowed_adapters())
            adapter = handle.name
            with self._tracer.start_as_current_span(
                "predict",
                attributes={"blora.adapter": adapter},
                record_exception=False,  # the message may contain a choice
                set_status_on_exception=False,
            ) as span:
                try:
                    answer = await self._answer(question, handle, deadline, siblings, member, labels, other_wording)
                except ServerError as error:
                    span.set_status(StatusCode.ERROR, error.code)
                    raise
                is_timed = False  # its time is recorded with the answer
                return answer
        except asyncio.CancelledError:
            if member is not None and member.together.failure is not None:
                self._endings.not_answered(adapter, None)
                is_timed = False  # neither an answer nor a failure that took this long
            else:
                self._endings.failed(adapter, DisconnectedError("the client left"))
            raise
        except ServerError as error:
            self._endings.failed(adapter, error)
            return error
        except Exception:
            logger.exception("A request to adapter %s failed unexpectedly", adapter)
            bug = InternalError("The server failed unexpectedly: report this as a bug.")
            self._endings.failed(adapter, bug)
            return bug
        finally:
            if is_timed:
                self._endings.finished(deadline)

    def asking(self, response: answers.Prediction, requested: bool) -> answers.Prediction:
        """Return a prediction that says whether its outcome is requested, if the server requests a share of them."""
        if self._settings.feedback_rate == 1:
            return response
        asking: answers.Prediction = response.model_copy(update={"feedback_requested": requested})
        return asking

    async def _answer(
        self,
        question: PredictRequest,
        handle: AdapterHandle,
        deadline: float,
        siblings: Siblings | None,
        member: Member | None,
        labels: Mapping[Label, int] | None,
        other_wording: Wording | None,
    ) -> answers.Prediction:
        n_samples, choices, in_force = self._terms(question, handle, other_wording)
        try:
            async with asyncio.timeout_at(deadline):
                row = await self._pack(question, handle, choices)
        except TimeoutError as exc:
            raise DeadlineExceededError("The question was not tokenised before its deadline: try again later.") from exc
        job = Job(handle, row, n_samples, question.seed, stop_of(in_force, handle), client_name())
        check_job(in_force, job)
        self._check_draws(job)
        text = await member.meet(*shared_reading(job)) if member is not None else None
        done = await self._compute(job, deadline, text)
        if siblings is not None:
            await siblings.turn()
        record_stages(self._tracer, queue_s=done.queue_s, compute_s=done.compute_s)
        given = answered(question, job, in_force, done, model=self.model.name, other_wording=other_wording)
        prediction, decision, response = given.prediction, given.decision, given.response
        get_current_span().set_attributes(
            {
                "blora.digest": handle.digest,
                "blora.draws": len(done.result.probs),
                "blora.abstained": decision.abstained,
            }
        )
        store = partial(
            self.feedback.predicted,
            handle,
            response.id,
            choices,
            text=member.together.about if member is not None else AskedText(asked_text(question)),
            leader=prediction.top,
            client=client_name(),
            target_risk=in_force.target_risk if in_force is not None else None,
            answered=not decision.abstained,
            familiarity=prediction.familiarity if given.likely is not None else None,
            labels=labels if labels is not None else own_labels(handle, choices),
        )

        made = self._endings.made(handle, given, n_tokens=row.n_tokens, deadline=deadline, store=store)
        if question.return_samples:
            response = response.model_copy(update={"samples": done.result.probs.tolist()})
        if siblings is None:
            return self.asking(response, made.record())
        siblings.add(response.id, made)
        return response

    def _n_sample_values(self, question: PredictRequest | InvalidRequestError) -> int:
        """Return the number of sample values in the answer; 0 for a question that gets an error."""
        if isinstance(question, InvalidRequestError) or not question.return_samples:
            return 0
        try:
            handle = self.registry.resolve(question.adapter, allowed_adapters())
            return self._n_samples(question, handle) * len(offered_choices(question, handle))
        except ServerError:
            return 0

    def _terms(
        self, question: PredictRequest, handle: AdapterHandle, other_wording: Wording | None
    ) -> tuple[int, Sequence[str], InForce | None]:
        """Return a question's number of draws, its choices, and the policy in force."""
        n_samples, choices = self._n_samples(question, handle), offered_choices(question, handle)
        return n_samples, choices, policy_for(question, handle, other_wording)

    def _n_samples(self, question: PredictRequest, handle: AdapterHandle) -> int:
        cap = self._settings.n_samples_cap
        n_samples = question.n_samples or handle.config.sampling.n_samples
        if n_samples > cap:
            raise InvalidRequestError(
                f"got {n_samples} draws, expected at most {cap}: ask for fewer",
                code="out_of_range",
                param="n_samples",
            )
        return n_samples

    def _check_draws(self, job: Job) -> None:
        if job.in_bank:
            return
        bank = job.handle.bank
        if self._engine.fresh_draws:
            needed = adapter_bytes(job.handle.config, job.n_samples) / 2**20
            most = self._settings.max_adapter_memory_mib
            if needed > most:
                raise InvalidRequestError(
                    f"got {job.n_samples} draws of adapter {job.handle.name!r}, which take {needed:.0f} MiB of memory, "
                    f"expected at most {most}, the server's --max-adapter-memory-mib: ask for fewer",
                    code="out_of_range",
                    param="n_samples",
                )
            return
        raise InvalidRequestError(
            f"This server's engine has only {bank.n_samples} draws, of seed {bank.seed}: leave the seed out, and ask "
            f"for at most {bank.n_samples} draws.",
            code="out_of_range",
            param="n_samples" if job.n_samples > bank.n_samples else "seed",
        )

    async def _pack(self, question: PredictRequest, handle: AdapterHandle, choices: Sequence[str]) -> PackedRow:
        characters = self._lengths.check_characters(question, choices)
        messages = question.messages
        try:
            async with self._tokenizer_queue.turn(Owner(client_name(), handle.name), characters):
                self._batcher.check_admitting()  # the engine may have been closed meanwhile
                row = await self._engine.pack(
                    handle,
                    prompt=question.prompt,
                    messages=[turn.model_dump() for turn in messages] if messages else None,
                    choices=choices,
                    scoring=question.scoring,
                )
        except PromptTooLongError as exc:
            raise self._lengths.too_long(question, choices) from exc
        except PromptError as exc:
            raise InvalidRequestError(str(exc), code="invalid_prompt", param=exc.param) from exc
        self._lengths.check_row(row, question, choices)
        return row

    async def _compute(self, job: Job, deadline: float, text: Text | None) -> Completed[Outcome]:
        prompt = job.row.prompt_tokens
        owner = Owner(client_name(), job.handle.name)
        work = Work(
            job,
            (prompt, job.row.n_tokens - prompt),
            job.passes,
            job.group,
            owner,
            most_draws=job.most_passes,
            overhead=job.overhead,
            text=text.key if text is not None else None,
            text_tokens=text.n_tokens if text is not None else 0,
        )
        try:
            done = await self._batcher.submit(work, deadline=deadline)
        except ServerError:
            raise
        except UnavailableError as exc:
            raise EngineUnreachableError("What computes the answers cannot be reached: try again later.") from exc
        except NumericalError as exc:
            logger.error("%s", exc)
            raise _non_finite() from exc
        except Exception as exc:
            logger.exception("A forward pass of adapter %s failed", job.handle.name)
            raise ModelFailureError(
                "The model failed: try again, and report it to the operator if it fails again."
            ) from exc
        if not bool(done.result.probs.isfinite().all()):
            raise _non_finite()
        return done


def asked_text(question: PredictRequest) -> str:
    """Return the text that a question is about."""
    return wording(question.prompt, (turn.content for turn in question.messages or ()))


def _non_finite() -> NonFiniteError:
    return NonFiniteError("The model returned NaN or infinity instead of probabilities: report it to the operator.")
