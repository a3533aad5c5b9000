"""`blora familiarize`: teach an adapter with a head which questions are familiar."""

from argparse import ArgumentParser
from pathlib import Path

from blora.cli import CommandHelp, add_model
from blora.training.commands.arguments import add_rows, own_folder, parse, settings_of

__all__ = ["SUMMARY", "main"]

SUMMARY = "fit an adapter's familiarity (out-of-distribution detection) to labelled rows, without training"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora familiarize", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument("adapter", type=own_folder, help="adapter directory")
    parser.add_argument("--output", type=Path, help="folder for the new adapter (default: replace the adapter)")
    add_rows(parser, "rows of the kind that is familiar, such as the training rows", split="train")
    parser.add_argument(
        "--validation",
        help="further such rows, which give the p-values until the adapter is calibrated (default: a tenth of --data)",
    )
    parser.add_argument(
        "--validation-split", default="validation", help="split of a hub data set given with --validation"
    )
    add_model(parser, default=None)
    return parser


def main(argv: list[str]) -> int:
    """Fit the familiarity, write the adapter, and print how well each kind of distance tells left-out labels."""
    arguments = parse(_parser(), argv)

    from blora.training.familiarize import familiarize_adapter

    output = arguments.output or arguments.adapter
    found = familiarize_adapter(
        arguments.adapter,
        output,
        **settings_of(arguments, but=("adapter", "output")),
    )
    chosen = found.familiarity.config
    for candidate in found.candidates:
        mark = "  <- chosen" if candidate.kind == chosen.kind else ""
        print(f"{candidate.kind:<10} AUROC {candidate.auroc:.3f} of labels that are left out{mark}")
    print(f"wrote {output}: familiarity of kind {chosen.kind}, p-values among {chosen.n_reference} rows")
    return 0
