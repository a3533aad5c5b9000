"""Arguments shared by the sub-commands."""

import logging
import sys
from argparse import (
    ArgumentParser,
    ArgumentTypeError,
    Namespace,
    _ArgumentGroup,
)
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from blora.config import ChoiceEnd, NormalizationName, ScoringName
from blora.hub.name import HubName, place_of
from blora.questions.columns import add_columns, choices_of
from blora.training.config import N_SAMPLES, N_SAMPLES_HEAD, NEW_PROMPT, SCALES, TOLERANCE_NATS

__all__ = [
    "add_prompt",
    "add_rows",
    "add_sampling",
    "add_tuning",
    "names",
    "numbers",
    "own_folder",
    "parse",
    "positive",
    "settings_of",
]


class _ToStandardError(logging.Handler):
    """Handler that writes records as "warning: ..." to the current `sys.stderr`."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"{record.levelname.lower()}: {record.getMessage()}", file=sys.stderr, flush=True)


def parse(parser: ArgumentParser, argv: Sequence[str]) -> Namespace:
    """Parse the arguments of a command, and send log lines to standard error from then on."""
    parser.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="warning",
        help="least severe log lines to write to standard error",
    )
    arguments = parser.parse_args(argv)
    log = logging.getLogger("blora")
    log.setLevel(arguments.log_level.upper())
    if not any(isinstance(handler, _ToStandardError) for handler in log.handlers):
        log.addHandler(_ToStandardError())
    return arguments


def settings_of(arguments: Namespace, *, but: Sequence[str]) -> dict[str, Any]:
    """Return the arguments of a command by name, without those in `but` and without the log level."""
    return {name: value for name, value in vars(arguments).items() if name not in (*but, "log_level")}


def add_rows(parser: ArgumentParser, about: str, *, split: str) -> None:
    """Add the flags that select labelled rows.

    Args:
        parser: the parser of the command.
        about: description of the rows, for the help text.
        split: the default split.
    """
    parser.add_argument(
        "--data", required=True, help=f"{about}: .jsonl, .csv, .parquet, or hub data set owner/name[:config]"
    )
    parser.add_argument(
        "--split", default=split, help="split of a hub data set to load; for a file, a name for the record"
    )
    parser.add_argument(
        "--limit",
        type=positive,
        help="use this many rows from the top, for a proof each about another text; a proof needs them in random order "
        "(default: all); every row is checked all the same",
    )
    add_columns(parser)


def add_tuning(parser: ArgumentParser) -> None:
    """Add the flags for the validation rows and the search for a scale."""
    add_rows(parser, "validation rows", split="validation")
    parser.add_argument(
        "--scales",
        type=numbers,
        default=",".join(f"{scale:g}" for scale in SCALES),
        help="factors to try on the posterior's standard deviations, separated by commas",
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=TOLERANCE_NATS,
        help="choose the largest scale whose NLL is within this many nats of the best",
    )


def add_prompt(parser: ArgumentParser | _ArgumentGroup) -> None:
    """Add the flags that set how a question becomes text."""
    defaults = NEW_PROMPT
    parser.add_argument(
        "--choices",
        type=choices_of,
        help="fixed label set, separated by | (default: every row and request has its own choices; if no row "
        "has choices, the set of all labels)",
    )
    parser.add_argument(
        "--template",
        help=r"text around the prompt, with {prompt} in it, once or twice (default: 'Question: {prompt}\nAnswer:' for "
        "the column question, the prompt as it is for the column prompt)",
    )
    parser.add_argument(
        "--scoring",
        choices=get_args(ScoringName),
        default=defaults.scoring,
        help="score the text of each choice, or its letter in a list in the prompt; the scores of letters depend on "
        "the order of the choices",
    )
    parser.add_argument(
        "--normalization",
        choices=get_args(NormalizationName),
        default=defaults.normalization,
        help="divide the log-probability of a choice by nothing, by its own length in tokens, or by the mean length "
        "of the question's choices",
    )
    parser.add_argument(
        "--choice-end",
        choices=get_args(ChoiceEnd),
        default=NEW_PROMPT.choice_end,
        help="token to score at the end of every choice; with none, if one label is the beginning of another, the "
        "shorter one always wins",
    )


def add_sampling(parser: ArgumentParser | _ArgumentGroup, *, n_samples: int | None) -> None:
    """Add the flags for the adapter's draws."""
    parser.add_argument(
        "--n-samples",
        type=positive,
        default=n_samples,
        help="number of draws (posterior samples of the weights) for each answer"
        + ("" if n_samples else f" (default: {N_SAMPLES_HEAD} with a head, {N_SAMPLES} without)"),
    )
    parser.add_argument("--bank-seed", type=int, default=0, help="seed of the adapter's draws")
    parser.add_argument(
        "--stop-error",
        type=float,
        help="stop early once the policy's decision is settled, with about this probability, such as 0.01, that the "
        "remaining draws would have changed the decision; with more under max_mutual_information (default: take all "
        "draws)",
    )


def names(text: str) -> tuple[str, ...]:
    """Return the names in a text that separates them by commas."""
    return tuple(name.strip() for name in text.split(","))


def own_folder(text: str) -> Path:
    """Return a text as the path of an adapter to change; a name on the hub, which has none, is refused."""
    if isinstance(place_of(text), HubName):
        raise ArgumentTypeError(f"got {text!r} to change, expected a folder: copy it with `blora pull {text} FOLDER`")
    return Path(text)


def positive(text: str) -> int:
    """Return a text as a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return number


def numbers(text: str) -> tuple[float, ...]:
    """Return the positive numbers in a text that separates them by commas."""
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if not found or not all(0 < number < float("inf") for number in found):
        raise ArgumentTypeError(f"got {text!r}, expected positive numbers separated by commas")
    return found
