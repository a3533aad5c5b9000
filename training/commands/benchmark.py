"""`blora benchmark`: methods and seeds side by side on the same rows; goes on where it was killed."""

import shlex
from argparse import ArgumentParser, ArgumentTypeError
from pathlib import Path

from blora.command_help import CommandHelp
from blora.errors import ConfigError
from blora.training.commands.arguments import add_model, positive

__all__ = ["SUMMARY", "main"]

SUMMARY = "compare methods on the same data and budget"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora benchmark", description=SUMMARY, formatter_class=CommandHelp)
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
    return parser


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


def main(argv: list[str]) -> int:
    """Runs what is missing and names every result file."""
    arguments = _parser().parse_args(argv)

    from blora.base_model import load_base_model
    from blora.inference.architecture import check_packing
    from blora.training.grid.bench import Source, set_up
    from blora.training.grid.methods import METHODS
    from blora.training.grid.run import run

    methods = list(METHODS) if arguments.methods == "all" else arguments.methods.split(",")
    if unknown := [name for name in methods if name not in METHODS]:
        raise ConfigError(f"got methods {unknown}, expected some of {', '.join(METHODS)}")
    base = load_base_model(arguments.base_model, device=arguments.device, dtype=arguments.dtype)
    check_packing(base)
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
    command = shlex.join(["blora", "benchmark", *argv])
    for file, was_there in run(bench, methods, arguments.seeds, arguments.output, command):
        print(f"{file}{' was there' if was_there else ''}", flush=True)
    return 0
