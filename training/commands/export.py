"""`blora export`: the draws of an adapter as ordinary LoRA folders."""

from argparse import ArgumentDefaultsHelpFormatter, ArgumentParser
from pathlib import Path

from blora.training.commands.arguments import add_model, positive

__all__ = ["SUMMARY", "main"]

SUMMARY = "write posterior draws as plain LoRAs"


def main(argv: list[str]) -> int:
    """Writes them."""
    parser = ArgumentParser("blora export", description=SUMMARY, formatter_class=ArgumentDefaultsHelpFormatter)
    parser.add_argument("adapter", type=Path, help="the adapter directory")
    parser.add_argument("output", type=Path, help="a new folder, which gets draw-000, draw-001 ...")
    parser.add_argument("--draws", type=positive, help="how many (default: the adapter's)")
    add_model(parser)
    arguments = parser.parse_args(argv)

    from blora.adapter import load_adapter
    from blora.base_model import load_base_model
    from blora.export import export_draws

    base = load_base_model(arguments.base_model, device=arguments.device, dtype=arguments.dtype)
    adapter = load_adapter(arguments.adapter, base)
    n_samples = arguments.draws or adapter.config.sampling.n_samples
    folders = export_draws(adapter, base, arguments.output, n_samples)
    print(f"wrote {len(folders)} draws of {adapter.name} to {arguments.output}; average the probabilities under each")
    return 0
