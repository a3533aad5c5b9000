"""Questions answered without HTTP, by the same predictor; a file of them in the order of the rows, each row once.

An answer is appended as soon as it and all before it are there, so that a run which was killed goes on where it was.
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

from blora.errors import ConfigError
from blora.server.batch.rows import QuestionRow
from blora.server.engines.protocol import Engine
from blora.server.errors import InvalidRequestError, ServerError
from blora.server.prediction.service import Service
from blora.server.schemas.requests import PredictRequest
from blora.server.schemas.responses import error_body
from blora.server.schemas.validation import invalid_request
from blora.server.settings import Settings

__all__ = ["answer_all", "answering", "patient", "rows_done"]

Answer = Callable[[dict[str, Any]], Awaitable[dict[str, Any]]]

# Nobody waits for any single row.
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
# Rows that are read ahead: enough to fill batches of like length.
AHEAD = 512


def rows_done(output: Path) -> int:
    """How many rows a file of answers has; a last line that was cut off is taken away.

    Raises:
        ConfigError: if it is something else.
    """
    if not output.exists():
        return 0
    with output.open("rb+") as file:
        n_rows, whole = 0, 0
        for line in file:
            if not line.endswith(b"\n"):
                break
            if not line.startswith(b'{"row": %d,' % n_rows):
                raise ConfigError(
                    f"got {output}, whose line {n_rows + 1} is no answer to row {n_rows}, expected a file of ours or "
                    "none: name another"
                )
            n_rows, whole = n_rows + 1, whole + len(line)
        file.truncate(whole)
    return n_rows


def patient(**given: Any) -> Settings:
    """Settings of an engine that nobody waits for, and that no limit on a request protects.

    Args:
        given: as for a server: `adapters`, `base_model`, `device`, ...
    """
    return Settings(**PATIENT, **given)  # type: ignore[arg-type]


@asynccontextmanager
async def answering(settings: Settings, engine: Engine) -> AsyncIterator[Answer]:
    """A function from a question, the fields of a request, to its `prediction` or `error`; many may be asked at once.

    Args:
        settings: as for a server, or `patient`.
        engine: computes the probabilities; it is loaded here, and closed.

    Raises:
        ConfigError: if nothing can be loaded.
    """
    service = Service(settings, engine)
    await service.start()
    try:
        await service.settled.wait()
        if service.failure is not None:
            raise ConfigError(service.failure)
        yield partial(_answer, service)
    finally:
        await service.stop()


async def answer_all(
    settings: Settings,
    engine: Engine,
    questions: Iterator[QuestionRow],
    output: Path,
    *,
    fields: Mapping[str, Any],
    done: Callable[[int], object] = lambda n_rows: None,
) -> int:
    """Appends an answer or an error to the output for each question that has none yet, and returns how many there were.

    Args:
        settings: as for a server.
        engine: computes the probabilities; it is loaded here, and closed.
        questions: of all rows, those answered before included.
        output: the file of answers, JSON lines of `row`, the row's own `id` if it has one, and `prediction` or
            `error`.
        fields: more of every request, as policy and n_samples.
        done: told the number of rows that were there before, then 1 for each.

    Raises:
        ConfigError: if nothing can be loaded, or the output is something else.
    """
    first = rows_done(output)
    done(first)
    async with answering(settings, engine) as answer:
        rest = enumerate(islice(questions, first, None), start=first)
        pending: deque[asyncio.Task[str]] = deque()
        # Half of a surrogate pair is no UTF-8, and its backslash form is JSON.
        with output.open("a", encoding="utf-8", errors="backslashreplace") as file:
            while True:
                pending.extend(
                    asyncio.create_task(_line(answer, row, question, fields))
                    for row, question in islice(rest, AHEAD - len(pending))
                )
                if not pending:
                    return first
                file.write(await pending.popleft())
                file.flush()
                first += 1
                done(1)


async def _line(answer: Answer, row: int, question: QuestionRow, fields: Mapping[str, Any]) -> str:
    own = {"id": question.id} if question.id is not None else {}
    if question.error is not None:
        told = error_body(question.error).model_dump()
    else:
        told = await answer(question.asked | dict(fields))
    return json.dumps({"row": row, **own, **told}, ensure_ascii=False, default=str) + "\n"


async def _answer(service: Service, asked: dict[str, Any]) -> dict[str, Any]:
    question: PredictRequest | InvalidRequestError
    try:
        question = PredictRequest.model_validate(asked)
    except ValidationError as exc:
        question = invalid_request(exc.errors(include_url=False))
    outcome = await service.predictor().predict(question)
    if isinstance(outcome, ServerError):
        return error_body(outcome).model_dump()
    return {"prediction": outcome.model_dump(exclude_unset=True)}
