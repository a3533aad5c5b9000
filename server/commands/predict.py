"""`blora predict`: answers a file of questions on this machine, without a server."""

import asyncio
import hashlib
import json
import logging
from argparse import ArgumentParser, Namespace
from collections import Counter, deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from blora.cli import CommandHelp, add_model
from blora.client.command import add_policy, read_policy
from blora.disk.atomic import naming
from blora.disk.locks import lock
from blora.errors import ConfigError
from blora.hub.name import HubName, place_of
from blora.questions.columns import add_columns, choices_of
from blora.questions.tables import read_rows
from blora.server.names import name_from

if TYPE_CHECKING:
    from pydantic import ValidationError

    from blora.server.batch.rows import QuestionRow

__all__ = ["SUMMARY", "main"]

SUMMARY = "answer a file of questions"
INCOMPLETE = 3


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "blora predict",
        description=f"{SUMMARY}: writes one line of JSON for each row, with `prediction` or `error`. An interrupted "
        "run continues when the same command is given again.",
        epilog=f"Exit code: 0 if every row has a prediction, withheld or not, {INCOMPLETE} if some have errors, 1 if "
        "the run failed, 2 if the command is wrong. The same command asks again the last rows, if the model failed on "
        "them.",
        formatter_class=CommandHelp,
    )
    parser.add_argument(
        "input",
        type=Path,
        help="file of questions: .jsonl, .csv or .parquet, with a column question, prompt or messages",
    )
    parser.add_argument(
        "output", type=Path, help=".jsonl file to write, in the order of the rows; each line has its row's id"
    )
    add_columns(parser)
    parser.add_argument("--adapter", required=True, help="adapter directory, or hf://owner/name[@revision]")
    parser.add_argument(
        "--name", help="name of the adapter in the answers (default: the directory's or the repository's name)"
    )
    parser.add_argument(
        "--choices", help="choices, separated by |, for rows without any if the adapter has no fixed ones"
    )
    add_policy(parser)
    add_model(parser)
    parser.add_argument(
        "--max-batch-tokens",
        type=int,
        default=4096,
        help="most padded tokens x draws in one forward pass, and most tokens of a row",
    )
    return parser


def main(argv: list[str]) -> int:
    """Answer the rows that have no answer yet."""
    arguments = _parser().parse_args(argv)

    from pydantic import ValidationError
    from tqdm import tqdm

    from blora.adapter.opening import dtype_for_adapters
    from blora.base_model import pick_device
    from blora.hub.fetch import local_folder
    from blora.server.batch.offline import answer_file, patient
    from blora.server.batch.rows import read_questions
    from blora.server.engines.torch_engine import TorchEngine
    from blora.server.schemas.requests import PredictRequest

    fields = _fields(arguments)
    read = partial(read_questions, arguments.input, arguments.columns, fields.get("policy"))
    deque(read(), maxlen=0)  # reports a file that cannot be read before the model is loaded
    arguments.name = _name(arguments)
    arguments.adapter = local_folder(arguments.adapter)
    device = pick_device(arguments.device)
    arguments.dtype = dtype_for_adapters(arguments.dtype, device, [arguments.adapter], allow_uncalibrated=False)
    try:
        PredictRequest.model_validate({"prompt": "?", **fields})
    except ValidationError as exc:
        raise ConfigError(_wrong_flag(exc)) from exc
    settings = patient(
        base_model=arguments.base_model,
        device=arguments.device,
        dtype=arguments.dtype,
        adapters=(f"{arguments.name}={arguments.adapter}",),
        max_batch_tokens=arguments.max_batch_tokens,
    )
    with _claimed(arguments, fields), _drifts() as drifts:
        with tqdm(unit=" rows", disable=None) as progress:
            questions = (_with_choices(row, arguments) for row in read())
            n_rows = asyncio.run(
                answer_file(
                    settings, TorchEngine(settings), questions, arguments.output, fields=fields, done=progress.update
                )
            )
        n_withheld, n_errors, errors = _summed_up(arguments.output, arguments.input)
    print(
        f"{arguments.output}: {n_rows - n_withheld - n_errors} of {n_rows} rows answered, {n_withheld} withheld, "
        f"{n_errors} errors"
    )
    print(*errors, sep="\n", end="\n" if errors else "")
    if drifts:
        print(
            f"Adapter {arguments.name}: more of these questions are unfamiliar than its calibration allows, so that "
            "its guarantee does not hold for them: look at the rows with the lowest familiarity"
        )
    return INCOMPLETE if n_errors else 0


@contextmanager
def _drifts() -> Iterator[list[logging.LogRecord]]:
    """Move the server's log lines about a drift to the list that is yielded, for the summary."""
    found: list[logging.LogRecord] = []

    def is_other(record: logging.LogRecord) -> bool:
        if record.getMessage() != "drift_noticed":
            return True
        found.append(record)
        return False

    log = logging.getLogger("blora.server.monitoring.drift")
    log.addFilter(is_other)
    try:
        yield found
    finally:
        log.removeFilter(is_other)


def _summed_up(output: Path, questions: Path) -> tuple[int, int, list[str]]:
    """Return the numbers of withheld answers and of errors, and a line for each error code."""
    n_withheld, numbers = 0, Counter[str]()
    firsts: dict[str, tuple[int, str]] = {}
    with output.open(encoding="utf-8") as lines:
        for answer in map(json.loads, lines):
            if "error" in answer:
                code, param, message = (answer["error"][name] for name in ("code", "param", "message"))
                numbers[code] += 1
                firsts.setdefault(code, (answer["row"], f"{param}: {message}" if param else message))
            else:
                n_withheld += answer["prediction"]["abstained"]
    places = _places(questions, {row for row, _ in firsts.values()})
    told = ((n, code, *firsts[code]) for code, n in numbers.most_common())
    return (
        n_withheld,
        numbers.total(),
        [f"  {n} {code}, first in {places[row]}: {message}" for n, code, row, message in told],
    )


def _places(questions: Path, rows: Collection[int]) -> dict[int, str]:
    """Return the file and line of some rows of a file, which are counted from 0."""
    read = islice(read_rows(questions, lambda where, columns: None), max(rows, default=-1) + 1)
    return {row: where for row, (where, _) in enumerate(read) if row in rows}


def _fields(arguments: Namespace) -> dict[str, Any]:
    """Return the fields that all requests share."""
    policy = read_policy(arguments)
    found: dict[str, Any] = {"policy": policy} if policy else {}
    return found | ({"n_samples": arguments.n_samples} if arguments.n_samples is not None else {})


def _wrong_flag(error: "ValidationError") -> str:
    """Return the message for the first wrong field of all requests, with the flag that gives it."""
    first = error.errors(include_url=False)[0]
    field = str(first["loc"][-1])
    return f"got --{field.replace('_', '-')} {first['input']}, expected another value: {first['msg']}"


def _name(arguments: Namespace) -> str:
    """Return the given name, or the directory's or the repository's without invalid characters."""
    place = place_of(arguments.adapter)
    folder = place.name if isinstance(place, HubName) else place.resolve().name
    return arguments.name or name_from(folder) or "adapter"


def _with_choices(row: "QuestionRow", arguments: Namespace) -> "QuestionRow":
    """Return the row, with the command's choices if it has no choices."""
    if "choices" in row.asked or arguments.choices is None:
        return row
    return replace(row, asked=row.asked | {"choices": list(choices_of(arguments.choices))})


@contextmanager
def _claimed(arguments: Namespace, fields: dict[str, Any]) -> Iterator[None]:
    """Keep other runs away from the output, by a lock on its record, which ends with the process at the latest.

    Raises:
        ConfigError: if the output is the input, another run is writing the output, or it was begun with other
            questions, another adapter, another dtype or other flags.
    """
    if not arguments.input.is_file():
        raise ConfigError(f"got {arguments.input}, expected an existing file")
    if not arguments.adapter.is_dir():
        raise ConfigError(f"got adapter {arguments.adapter}, expected an existing directory")
    output: Path = arguments.output
    if output.exists() and output.samefile(arguments.input):
        raise ConfigError(
            f"got {output} as output, which is the file of questions, expected another file: name one for the answers, "
            "such as answers.jsonl"
        )
    note = output.with_name(f"{output.name}.run.json")
    if _has_lines(output) and not note.is_file():
        raise _begun_differently(output, arguments.dtype)
    with note.open("a") as record:
        _lock(record, output)
        about = _about(arguments, fields)
        if not _has_lines(output):
            with naming(note):
                note.write_text(json.dumps(about) + "\n")
        elif _noted(note) != about:
            raise _begun_differently(output, arguments.dtype)
        yield


def _has_lines(output: Path) -> bool:
    return output.exists() and output.stat().st_size > 0


def _noted(note: Path) -> object:
    """Return what a run noted about itself; None if nothing can be read, as after a power failure."""
    try:
        return json.loads(note.read_text())
    except ValueError:
        return None


def _lock(record: IO[str], output: Path) -> None:
    try:
        lock(record.fileno(), wait=False)
    except BlockingIOError as exc:
        raise ConfigError(
            f"got {output}, which another run is writing, expected one run at a time: wait until that run has ended, "
            "or name another output"
        ) from exc
    except OSError:  # no locks here: whoever runs two at once must take care
        return


def _begun_differently(output: Path, dtype: str) -> ConfigError:
    return ConfigError(
        f"got {output}, which was made with other questions, another adapter, another dtype or other flags, expected "
        f"an output of the same command in {dtype}: name another output, or remove this one"
    )


def _about(arguments: Namespace, fields: dict[str, Any]) -> dict[str, Any]:
    """Return the parts of the command on which the answers depend."""
    return {
        "input": [arguments.input.name, _digest(arguments.input)],
        "adapter": hashlib.sha256(b"".join(sorted(map(_content, arguments.adapter.glob("*"))))).hexdigest(),
        "base_model": arguments.base_model,
        "dtype": arguments.dtype,
        "name": arguments.name,
        "columns": arguments.columns,
        "choices": arguments.choices,
        "max_batch_tokens": arguments.max_batch_tokens,
        **fields,
    }


def _content(file: Path) -> bytes:
    return file.name.encode() + bytes.fromhex(_digest(file)) if file.is_file() else b""


def _digest(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
