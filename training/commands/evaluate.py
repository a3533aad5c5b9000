"""`blora evaluate`: evaluate an adapter, or the base model alone, on a labelled data set."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING

from blora.cli import CommandHelp, add_model
from blora.errors import ConfigError
from blora.training.commands.arguments import add_rows, parse, positive, settings_of

if TYPE_CHECKING:
    from blora.decision.by_choice import ChoiceCounts

__all__ = ["SUMMARY", "main"]

SUMMARY = "evaluate an adapter on a labelled data set"
BASE = "base"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora evaluate", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument(
        "adapter",
        help=f"adapter directory, hf://owner/name[@revision], or `{BASE}` for the base model without an adapter",
    )
    add_rows(parser, "labelled rows", split="test")
    parser.add_argument(
        "--n-samples",
        type=_counts,
        help="number of draws (posterior samples of the weights), or several numbers, as in 1,4,16, to evaluate in one "
        "run (default: the adapter's)",
    )
    parser.add_argument("--seed", type=int, help="seed of the draws (default: the adapter's)")
    parser.add_argument(
        "--json",
        type=Path,
        help="file to write the result to; with several numbers of draws the name must contain {n_samples}",
    )
    add_model(parser, default=None)
    return parser


def _counts(text: str) -> list[int]:
    return sorted({positive(count) for count in text.split(",")})


def main(argv: list[str]) -> int:
    """Evaluate, print the metrics under each number of draws and the results by choice, and write the result files."""
    arguments = parse(_parser(), argv)
    counts = arguments.n_samples
    if arguments.json and counts and len(counts) > 1 and "{n_samples}" not in arguments.json.name:
        raise ConfigError(
            f"got one file {arguments.json} for {len(counts)} results, expected {{n_samples}} in its name"
        )

    if arguments.json:
        _check_target(arguments.json)

    from blora.decision.by_choice import table
    from blora.hub.fetch import local_folder
    from blora.training.result import results

    adapter = None if arguments.adapter == BASE else local_folder(arguments.adapter)
    choices: tuple[ChoiceCounts, ...] = ()
    for found, result in results(adapter, argv=argv, **settings_of(arguments, but=("adapter", "json"))):
        figures = "  ".join(f"{name} {result[name]:.4f}" for name in ("accuracy", "nll", "ece", "brier", "aurc"))
        print(f"{result['n_samples']:>4} draws: {figures}  ({result['seconds']:.0f} s)", flush=True)
        if arguments.json:
            target = Path(str(arguments.json).replace("{n_samples}", str(result["n_samples"])))
            _check_target(target)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(json.dumps(result, indent=2) + "\n")
        choices = found.choices
    if choices:
        print("", table(choices), sep="\n")
    return 0


def _check_target(file: Path) -> None:
    """Raise ConfigError if a file is there that is no result of this command, such as the rows."""
    if file.is_dir():
        raise ConfigError(f"got the folder {file} for --json, expected a file in it")
    if not file.is_file():
        return
    try:
        found = json.loads(file.read_bytes())
    except ValueError:
        found = None
    if not isinstance(found, dict) or not {"n_samples", "dataset_digest"} <= found.keys():
        raise ConfigError(f"got {file} for --json, which is no earlier result, expected a new file: name another")
