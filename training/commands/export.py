"""`blora export`: write an adapter's draws as plain LoRA folders."""

from argparse import ArgumentParser
from pathlib import Path

from blora.cli import CommandHelp, add_model
from blora.training.commands.arguments import parse, positive

__all__ = ["SUMMARY", "main"]

SUMMARY = "write draws (posterior samples of the weights) as plain LoRAs"


def main(argv: list[str]) -> int:
    """Write the draws."""
    parser = ArgumentParser("blora export", description=SUMMARY, formatter_class=CommandHelp)
    parser.add_argument("adapter", help="adapter directory, or hf://owner/name[@revision]")
    parser.add_argument("output", type=Path, help="new folder for draw-000, draw-001 ...")
    parser.add_argument("--draws", type=positive, help="number of posterior draws (default: the adapter's)")
    add_model(parser, default=None)
    arguments = parse(parser, argv)

    from blora.adapter.export import export_draws
    from blora.adapter.opening import open_adapter
    from blora.hub.fetch import local_folder

    base, adapter = open_adapter(
        local_folder(arguments.adapter),
        base_model=arguments.base_model,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    folders = export_draws(adapter, base, arguments.output, arguments.draws)
    print(f"wrote {len(folders)} draws of {adapter.name} to {arguments.output}; average the probabilities under each")
    return 0
