"""`blora bayesianize`: make a Bayesian adapter from a plain PEFT LoRA, without training."""

from argparse import ArgumentParser
from pathlib import Path

from blora.cli import CommandHelp, add_model
from blora.training.commands.arguments import add_prompt, add_sampling, add_tuning, parse, settings_of
from blora.training.config import N_SAMPLES_TUNED

__all__ = ["SUMMARY", "main"]

SUMMARY = "make a Bayesian adapter from a trained LoRA, without training"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora bayesianize", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument(
        "lora",
        type=Path,
        help="directory of the LoRA, as PEFT saved it; one that blora train made keeps its question and policy, and "
        "where no flag is given its prompt, seed and --stop-error; for others the defaults are those of blora train",
    )
    parser.add_argument("--output", type=Path, required=True, help="adapter directory to write")
    add_sampling(parser, n_samples=N_SAMPLES_TUNED)
    add_tuning(parser)
    add_prompt(parser)
    parser.set_defaults(**dict.fromkeys(("bank_seed", "scoring", "normalization", "choice_end")))  # the LoRA's own
    add_model(parser, default=None, own="that of a LoRA that blora train made, otherwise embedded")
    return parser


def main(argv: list[str]) -> int:
    """Find the width of the posterior, write the adapter, and print every trial."""
    arguments = parse(_parser(), argv)

    from blora.training.bayesianize import bayesianize_lora
    from blora.training.provenance import command_line

    made, trials = bayesianize_lora(
        arguments.lora,
        arguments.output,
        arguments.data,
        command=command_line("bayesianize", argv),
        **settings_of(arguments, but=("lora", "output", "data")),
    )
    for trial in trials:
        print(f"{trial}{'  <- chosen' if trial is made.result else '  the LoRA itself' if trial.scale == 0 else ''}")
    print(f"wrote {arguments.output}")
    return 0
