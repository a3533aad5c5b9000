"""`blora push`: uploads an adapter to the Hugging Face hub."""

from argparse import ArgumentParser
from pathlib import Path

from blora.cli import CommandHelp

__all__ = ["SUMMARY", "main"]

SUMMARY = "upload an adapter to the Hugging Face hub"


def main(argv: list[str]) -> int:
    """Upload the adapter and print its name there."""
    parser = ArgumentParser(
        "blora push",
        description=f"{SUMMARY}, with its calibration and its card, in one commit. The token comes from the "
        "environment variable HF_TOKEN. The files hold the choices, the command that made the adapter and hashes of "
        "its training rows, but no row.",
        formatter_class=CommandHelp,
    )
    parser.add_argument("adapter", type=Path, help="adapter directory")
    parser.add_argument("repo", help="repository owner/name, which is created if it is missing")
    parser.add_argument("--revision", help="branch, which is created if it is missing (default: main)")
    parser.add_argument("--private", action="store_true", help="let only the owner see the repository")
    arguments = parser.parse_args(argv)

    from blora.hub.push import push

    name = push(arguments.adapter, arguments.repo, revision=arguments.revision, private=arguments.private)
    print(name)
    return 0
