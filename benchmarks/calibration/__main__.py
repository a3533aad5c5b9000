"""`python -m benchmarks.calibration`: `run` compares methods on the same rows, `report` shows the results.

Both need the extra `bench`. A run that was killed goes on where it was.
"""

import shlex
import sys
from argparse import ArgumentParser, ArgumentTypeError, Namespace, _SubParsersAction
from collections.abc import Iterator
from pathlib import Path

from blora.cli import CommandHelp, add_model
from blora.errors import BloraError, ConfigError
from blora.training.commands.arguments import positive

__all__ = ["main"]

PROGRAM = ("python", "-m", "benchmarks.calibration")


def main(argv: list[str]) -> int:
    """Run a sub-command and print each file that it wrote: 0 for success, 1 where it failed."""
    parser = ArgumentParser(" ".join(PROGRAM), description="compare methods on the same data and budget")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for add in (_add_run, _add_report):
        add(commands)
    arguments = parser.parse_args(argv)
    arguments.command = shlex.join([*PROGRAM, *argv])
    try:
        for line in arguments.lines(arguments):
            print(line, flush=True)
    except BloraError as exc:
        print(f"{parser.prog}: {exc}", file=sys.stderr)
        return 1
    return 0


def _add_run(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser("run", help="run every method for every seed", formatter_class=CommandHelp)
    parser.set_defaults(lines=_run)
    parser.add_argument("--train", type=_named, required=True, metavar="NAME=FILE", help="training and validation rows")
    parser.add_argument(
        "--test", type=_named, action="append", required=True, metavar="NAME=FILE", help="test rows; may be repeated"
    )
    parser.add_argument(
        "--shift",
        type=_named,
        action="append",
        default=[],
        metavar="NAME=FILE",
        help="test rows of another distribution",
    )
    parser.add_argument(
        "--shift-limit", type=positive, help="use this many rows of each --shift set, from the top (default: all)"
    )
    parser.add_argument("--train-examples", type=positive, default=800, help="number of rows to train on")
    parser.add_argument("--validation-examples", type=positive, default=400, help="number of rows to validate on")
    parser.add_argument("--layers", default="all", help="decoder layers to adapt: all, last:N, N or FIRST-LAST")
    parser.add_argument(
        "--epochs", type=positive, default=3, help="passes over the training rows, for every method that trains"
    )
    parser.add_argument(
        "--n-samples", type=positive, default=8, help="posterior samples, for every method that has a posterior"
    )
    parser.add_argument("--methods", default="all", help="names separated by commas, or all")
    parser.add_argument("--seeds", type=_seeds, default="0,1,2", help="training seeds, separated by commas")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for trained weights and computed probabilities"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder for the result files, one for each run")
    add_model(parser)


def _add_report(commands: "_SubParsersAction[ArgumentParser]") -> None:
    parser = commands.add_parser("report", help="write tables, plots and verdicts", formatter_class=CommandHelp)
    parser.set_defaults(lines=_report)
    parser.add_argument("results", type=Path, help="folder of result files (.json, at any depth), one for each run")
    parser.add_argument("--output", type=Path, required=True, help="folder for report.md and the .svg files")


def _named(text: str) -> tuple[str, str]:
    name, equals, path = text.partition("=")
    if not name or not equals or not path:
        raise ArgumentTypeError(f"got {text!r}, expected NAME=FILE")
    return name, path


def _seeds(text: str) -> tuple[int, ...]:
    seeds = text.split(",")
    if not all(seed.isdigit() for seed in seeds):
        raise ArgumentTypeError(f"got {text!r}, expected whole numbers separated by commas")
    return tuple(map(int, seeds))


def _run(arguments: Namespace) -> Iterator[str]:
    """Run what is missing and name every result file."""
    from benchmarks.calibration.bench import Source, set_up
    from benchmarks.calibration.methods import METHODS
    from benchmarks.calibration.run import run
    from blora.base_model import load_base_model
    from blora.inference.architecture import check_packing

    methods = list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"got methods {unknown}, expected some of {', '.join(METHODS)}")
    base = check_packing(load_base_model(arguments.base_model, device=arguments.device, dtype=arguments.dtype))
    bench = set_up(
        base,
        Source(*arguments.train),
        [Source(*test) for test in arguments.test] + [Source(name, path, True) for name, path in arguments.shift],
        layers=arguments.layers,
        n_train=arguments.train_examples,
        n_validation=arguments.validation_examples,
        shift_limit=arguments.shift_limit,
        epochs=arguments.epochs,
        n_samples=arguments.n_samples,
        work=arguments.work,
    )
    for file, was_there in run(bench, methods, arguments.seeds, arguments.output, arguments.command):
        yield f"{file}{' was there' if was_there else ''}"


def _report(arguments: Namespace) -> Iterator[str]:
    """Read every result and write the report; the same results make the same bytes."""
    from benchmarks.calibration.report.write import write_report

    yield from map(str, write_report(arguments.results, arguments.output))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
