"""`blora pull`: copies an adapter from the Hugging Face hub into a folder of one's own."""

from argparse import ArgumentParser
from pathlib import Path

from blora.cli import CommandHelp

__all__ = ["SUMMARY", "main"]

SUMMARY = "copy an adapter from the Hugging Face hub"


def main(argv: list[str]) -> int:
    """Copy the adapter."""
    parser = ArgumentParser(
        "blora pull",
        description=f"{SUMMARY}, to calibrate or change it. To serve, evaluate or export it, give its name in place "
        "of a folder.",
        formatter_class=CommandHelp,
    )
    parser.add_argument("name", help="hf://owner/name, with an optional @revision and #sha256:digest")
    parser.add_argument("output", type=Path, help="new folder")
    arguments = parser.parse_args(argv)

    from blora.hub.fetch import pull
    from blora.hub.name import HubName

    pull(HubName.parse(arguments.name), arguments.output)
    print(f"copied {arguments.name} to {arguments.output}")
    return 0
