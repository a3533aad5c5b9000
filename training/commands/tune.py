"""`blora tune`: the scale of an adapter's posterior, and its recalibration, without training."""

from argparse import ArgumentParser
from pathlib import Path

from blora.command_help import CommandHelp
from blora.training.commands.arguments import add_model, add_tuning

__all__ = ["SUMMARY", "main"]

SUMMARY = "find the scale and recalibration of an adapter's posterior on validation rows"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora tune", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument("adapter", type=Path, help="adapter directory")
    parser.add_argument("--output", type=Path, help="folder for the tuned adapter (default: replace the adapter)")
    add_tuning(parser)
    add_model(parser)
    return parser


def main(argv: list[str]) -> int:
    """Tunes, prints every trial, and writes the adapter."""
    arguments = _parser().parse_args(argv)

    from blora.base_model import load_base_model
    from blora.calibration_file import CALIBRATION_FILE
    from blora.inference.architecture import check_packing
    from blora.training.commands.few_rows import warn_of_few_rows
    from blora.training.tune import tune_adapter

    base = load_base_model(arguments.base_model, device=arguments.device, dtype=arguments.dtype)
    check_packing(base)
    output = arguments.output or arguments.adapter
    was_calibrated = (arguments.adapter / CALIBRATION_FILE).exists()
    chosen, trials = tune_adapter(
        arguments.adapter,
        output,
        base,
        data=arguments.data,
        split=arguments.split,
        limit=arguments.limit,
        scales=arguments.scales,
        tolerance=arguments.tolerance,
    )
    for trial in trials:
        print(f"{trial}{'  <- chosen' if trial is chosen else ''}")
    print(f"wrote {output}")
    warn_of_few_rows(chosen.n_rows)
    if was_calibrated:
        print("its calibration.json was that of the adapter before and is not kept: run blora calibrate again")
    return 0
