"""`blora key`: a new API key, shown once, and its hash for the server's key file."""

import sys
from argparse import ArgumentParser
from pathlib import Path

__all__ = ["SUMMARY", "main"]

SUMMARY = "make an API key for a server"


def main(argv: list[str]) -> int:
    """Prints the key, and adds its line to a file."""
    parser = ArgumentParser(
        "blora key",
        description=f"{SUMMARY}: prints it, once, and adds its hash to the file of `blora serve --api-keys FILE`. To "
        "take a key away remove its line; a running server notices both.",
    )
    parser.add_argument("name", help="whose key it is, for logs and limits")
    parser.add_argument("--file", type=Path, required=True, help="the server's key file")
    parser.add_argument("--admin", action="store_true", help="may load and unload adapters, too")
    arguments = parser.parse_args(argv)

    from blora.server.keys import Keys, line_of, new_key

    key = new_key()
    line = line_of(arguments.name, "admin" if arguments.admin else "predict", key)
    before = arguments.file.read_text() if arguments.file.exists() else ""
    after = before + ("" if before.endswith("\n") or not before else "\n") + line + "\n"
    partial = arguments.file.with_name(f"{arguments.file.name}.partial")
    partial.touch(mode=0o600)
    partial.write_text(after)
    Keys(partial)  # a file that the server would refuse does not replace one that it takes
    partial.replace(arguments.file)
    print(key)
    sys.stderr.write(f"added {arguments.name} to {arguments.file}\n")
    return 0
