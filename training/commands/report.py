"""`blora report`: tables, plots and verdicts from a folder of result files."""

from argparse import ArgumentParser
from pathlib import Path

from blora.command_help import CommandHelp

__all__ = ["SUMMARY", "main"]

SUMMARY = "write tables, plots and verdicts from the results of blora benchmark"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora report", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument("results", type=Path, help="folder of result files (.json, at any depth), one for each run")
    parser.add_argument(
        "--output", type=Path, required=True, help="folder for report.md, report.html and the .svg files"
    )
    return parser


def main(argv: list[str]) -> int:
    """Reads every result and writes the report; the same results make the same bytes."""
    arguments = _parser().parse_args(argv)

    from blora.training.report.write import write_report

    for file in write_report(arguments.results, arguments.output):
        print(file)
    return 0
