"""Prediction without HTTP by the server's predictor, for single questions and for files.

The answers to a file are appended in the order of the rows, so that an interrupted run can continue where it stopped.
"""

import asyncio
import json
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from blora.disk.atomic import naming
from blora.errors import BaseModelError, ConfigError
from blora.server.batch.rows import QuestionRow
from blora.server.engines.protocol import Engine
from blora.server.errors import CODES, InvalidRequestError, ServerError
from blora.server.monitoring.recent_texts import AskedText
from blora.server.prediction.predictor import asked_text
from blora.server.prediction.service import Service
from blora.server.schemas.requests import PredictRequest
from blora.server.schemas.responses import error_body
from blora.server.schemas.validation import invalid_request
from blora.server.settings import OfflineSettings, Settings, first_problem

__all__ = ["answer_file", "answering", "patient", "rows_done"]

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

# Settings that lift the limits on single requests, because no client waits for a single row.
PATIENT = {
    "timeout_s": 1e9,
    "max_queue_tokens": 2**40,
    "max_queue_requests": 2**20,
    "max_input_passes": 2**40,
    "max_queue_characters": 2**40,
    "max_prompt_tokens": 2**31,
    "n_samples_cap": 2**20,
    "max_adapter_memory_mib": 2**20,
    "adapter_load_timeout_s": 1e6,
}
# Rows in progress: enough to fill batches of rows of similar length.
AHEAD = 512
# Failures in succession that end a run: so many are the machine's, as for lack of memory, and not the rows'.
MOST_FAILURES = 32


def rows_done(output: Path) -> int:
    """Return the number of rows in a file of answers that need not be asked again.

    An incomplete last line is removed, and so are the last rows, if the model or the machine failed on them.

    Raises:
        ConfigError: if the file is not a file of answers.
    """
    if not output.exists():
        return 0
    with output.open("rb+") as file:
        n_rows, whole, kept = 0, 0, (0, 0)
        for line in file:
            if not line.endswith(b"\n"):
                break
            if not line.startswith(b'{"row": %d,' % n_rows):
                raise ConfigError(
                    f"got {output}, whose line {n_rows + 1} is not an answer to row {n_rows}, expected a file of "
                    "answers or no file: name another"
                )
            n_rows, whole = n_rows + 1, whole + len(line)
            if not _is_failure(line):
                kept = n_rows, whole
        file.truncate(kept[1])
    return kept[0]


def patient(**given: Any) -> Settings:
    """Return settings for offline use, without the limits that protect a server from single requests.

    The variables BLORA_* that configure a server have no effect.

    Args:
        given: settings as for a server: `adapters`, `base_model`, `device`, ...

    Raises:
        ConfigError: if a value is out of range or of the wrong type.
    """
    try:
        return OfflineSettings(**PATIENT, **given)  # type: ignore[arg-type]
    except ValidationError as exc:
        raise ConfigError(first_problem(exc)) from exc


@asynccontextmanager
async def answering(settings: Settings, engine: Engine) -> AsyncIterator[Answer]:
    """Provide a function that answers a question, given as the fields of a request, with `prediction` or `error`.

    The function may be called concurrently.

    Args:
        settings: settings as for a server, or from `patient`.
        engine: computes the probabilities; loaded and closed here.

    Raises:
        ConfigError: if loading fails.
    """
    async with _serving(settings, engine) as service:
        yield partial(_answer, service)


@asynccontextmanager
async def _serving(settings: Settings, engine: Engine) -> AsyncIterator[Service]:
    service = Service(settings, engine)
    await service.start()
    try:
        await service.settled.wait()
        if service.failure is not None:
            raise ConfigError(service.failure)
        yield service
    finally:
        await service.stop()


async def answer_file(
    settings: Settings,
    engine: Engine,
    questions: Iterator[QuestionRow],
    output: Path,
    *,
    fields: Mapping[str, Any],
    done: Callable[[int], object] = lambda n_rows: None,
) -> int:
    """Append an answer or an error for each question that has none yet; return the number of all questions.

    The answers that the file has already count in the test of drift as new ones do.

    Args:
        settings: settings as for a server.
        engine: computes the probabilities; loaded and closed here.
        questions: the questions of all rows, including the rows answered before.
        output: the file of answers, JSON lines of `row`, the row's own `id` if it has one, and `prediction` or
            `error`.
        fields: further fields of every request, such as policy and n_samples.
        done: called with the number of rows answered before, and then with 1 for each row.

    Raises:
        ConfigError: if loading fails, or the output is not a file of answers.
        BaseModelError: if the device computes nothing any more, or the model fails on many rows in succession.
    """
    first, n_failures = rows_done(output), 0
    done(first)
    async with _serving(settings, engine) as service:
        await _count(service, output, islice(questions, first), fields)
        answer, rest = partial(_answer, service), enumerate(questions, start=first)
        pending: deque[asyncio.Task[str]] = deque()
        try:
            # Half a surrogate pair cannot be encoded in UTF-8; its backslash escape is valid JSON.
            with output.open("a", encoding="utf-8", errors="backslashreplace") as file:
                while True:
                    pending.extend(
                        asyncio.create_task(_line(answer, row, question, fields))
                        for row, question in islice(rest, AHEAD - len(pending))
                    )
                    if not pending:
                        return first
                    line = await pending.popleft()
                    with naming(output):
                        file.write(line)
                        file.flush()
                    first += 1
                    done(1)
                    n_failures = n_failures + 1 if _is_failure(line.encode(errors="backslashreplace")) else 0
                    if n_failures == MOST_FAILURES:
                        raise _failing(json.loads(line)["error"])
        finally:
            for task in pending:
                task.cancel()
            await asyncio.gather(*pending, return_exceptions=True)


def _is_failure(line: bytes) -> bool:
    """Return whether a line of a file of answers has an error of the model or the machine, and not of its row."""
    found = json.loads(line).get("error") if b'"error": {' in line else None
    code = CODES.get(found["code"]) if found is not None else None
    return code is not None and code.status >= 500


def _failing(error: dict[str, str]) -> BaseModelError:
    return BaseModelError(
        f"got {MOST_FAILURES} failures in succession ({error['code']}: {error['message']}), expected answers: look at "
        "the log, and give the same command again, which asks these rows anew; the answers so far stay"
    )


async def _count(service: Service, output: Path, questions: Iterator[QuestionRow], fields: Mapping[str, Any]) -> None:
    """Count the answers of a file in the test of drift, given the questions of its rows."""
    if not output.exists():
        return
    predictor = service.predictor()
    handle = predictor.registry.resolve(None)
    with output.open(encoding="utf-8") as lines:
        for question, line in zip(questions, lines, strict=False):
            prediction = json.loads(line).get("prediction")
            # Without a prediction set the calibration does not speak of the question.
            if prediction is not None and prediction["prediction_set"] is not None:
                text = AskedText(asked_text(PredictRequest.model_validate(question.asked | dict(fields))))
                predictor.feedback.count(handle, prediction.get("familiarity"), text)
                await asyncio.sleep(0)  # each answer is an observation of its own


async def _line(answer: Answer, row: int, question: QuestionRow, fields: Mapping[str, Any]) -> str:
    own = _own_id(question)
    if question.error is not None:
        told = error_body(question.error).model_dump()
    else:
        told = await answer(question.asked | dict(fields))
    return json.dumps({"row": row, **own, **told}, ensure_ascii=False, default=str) + "\n"


def _own_id(question: QuestionRow) -> dict[str, object]:
    """Return the field for the row's own id; no field if there is no id, or JSON cannot hold it, as NaN in Parquet."""
    if question.id is None:
        return {}
    own = {"id": question.id}
    try:
        json.dumps(own, allow_nan=False, default=str)
    except (ValueError, RecursionError):
        return {}
    return own


async def _answer(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    question: PredictRequest | InvalidRequestError
    try:
        question = PredictRequest.model_validate(asked)
    except ValidationError as exc:
        question = invalid_request(exc.errors(include_url=False))
    outcome = await service.predictor().predict(question)
    if isinstance(outcome, ServerError):
        if service.lost is not None:
            raise BaseModelError(
                f"got {service.lost!r} from the device, which computes nothing any more in this process, expected an "
                "answer: start again; the answers so far stay"
            )
        return error_body(outcome).model_dump()
    return {"prediction": outcome.model_dump(exclude_unset=True)}
