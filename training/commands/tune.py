"""`blora tune`: find the scale and recalibration of an adapter's posterior, without training."""

from argparse import ArgumentParser
from pathlib import Path

from blora.cli import CommandHelp, add_model
from blora.training.commands.arguments import add_tuning, own_folder, parse, settings_of

__all__ = ["SUMMARY", "main"]

SUMMARY = "find the scale and recalibration of an adapter's posterior on validation rows"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora tune", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument("adapter", type=own_folder, help="adapter directory")
    parser.add_argument("--output", type=Path, help="folder for the tuned adapter (default: replace the adapter)")
    add_tuning(parser)
    add_model(parser, default=None)
    return parser


def main(argv: list[str]) -> int:
    """Tune the adapter, write it, and print every trial."""
    arguments = parse(_parser(), argv)

    from blora.training.tune import tune_adapter

    output = arguments.output or arguments.adapter
    chosen, trials = tune_adapter(
        arguments.adapter,
        output,
        **settings_of(arguments, but=("adapter", "output")),
    )
    for trial in trials:
        print(f"{trial}{'  <- chosen' if trial is chosen else ''}")
    print(f"wrote {output}")
    return 0
