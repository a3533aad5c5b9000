"""`blora bayesianize`: a plain PEFT LoRA to a Bayesian adapter, without training."""

from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

from blora.command_help import CommandHelp
from blora.config import PromptConfig
from blora.training.commands.arguments import (
    add_model,
    add_prompt,
    add_sampling,
    add_tuning,
    read_prompt,
    read_sampling,
)

__all__ = ["SUMMARY", "main"]

SUMMARY = "make a trained LoRA Bayesian"


def _parser() -> ArgumentParser:
    parser = ArgumentParser("blora bayesianize", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument("lora", type=Path, help="directory of the LoRA, as PEFT saved it")
    parser.add_argument("--output", type=Path, required=True, help="adapter directory to write")
    add_sampling(parser, n_samples=8)
    add_tuning(parser)
    add_prompt(parser)
    add_model(parser)
    return parser


def main(argv: list[str]) -> int:
    """Finds the width, prints every trial, and writes the adapter."""
    arguments = _parser().parse_args(argv)
    sampling = read_sampling(arguments)
    prompt: PromptConfig = read_prompt(arguments)

    from blora.base_model import load_base_model
    from blora.inference.architecture import check_packing
    from blora.training.bayesianize import bayesianize
    from blora.training.commands.few_rows import warn_of_few_rows
    from blora.training.data import read_examples

    examples = read_examples(arguments.data, choices=arguments.choices, split=arguments.split)
    examples = replace(examples, examples=examples.examples[: arguments.limit])
    base = load_base_model(arguments.base_model, device=arguments.device, dtype=arguments.dtype)
    check_packing(base)
    chosen, trials = bayesianize(
        arguments.lora,
        arguments.output,
        base,
        examples,
        prompt if arguments.template is not None else replace(prompt, template=examples.template),
        sampling,
        scales=arguments.scales,
        tolerance=arguments.tolerance,
        argv=argv,
    )
    for trial in trials:
        print(f"{trial}{'  <- chosen' if trial is chosen else '  the LoRA itself' if trial.scale == 0 else ''}")
    print(f"wrote {arguments.output}")
    warn_of_few_rows(chosen.n_rows)
    return 0
