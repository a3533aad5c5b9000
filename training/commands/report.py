"""`blora report`: tables, plots and verdicts from a folder of result files."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

__all__ = ["SUMMARY", "main"]

SUMMARY = "compare the methods of a folder of results: tables, plots, verdicts"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora report", description=SUMMARY, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("results", type=Path, help="folder whose .json files, at any depth, are one run each")
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
