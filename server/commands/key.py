"""`blora key`: makes an API key, prints it once, and adds its hash to the server's key file."""

import os
import sys
from argparse import ArgumentParser
from pathlib import Path

from blora.disk.atomic import write_file
from blora.disk.locks import locked
from blora.errors import ConfigError

__all__ = ["SUMMARY", "main"]

SUMMARY = "make an API key for a server"


def main(argv: list[str]) -> int:
    """Print a new key and add its line to the key file."""
    parser = ArgumentParser(
        "blora key",
        description=f"{SUMMARY}. The key is printed once; the file, which `blora serve --api-keys FILE` reads, gets "
        "its hash. Remove its line to revoke a key. A running server notices both. To replace a key, make another one "
        "of its name with --again, hand that out, and remove the older line.",
    )
    parser.add_argument("name", help="name of the key's owner, for logs and rate limits")
    parser.add_argument("--file", type=Path, required=True, help="key file of the server")
    opens = parser.add_mutually_exclusive_group()
    opens.add_argument("--admin", action="store_true", help="also let the key load and unload adapters")
    opens.add_argument(
        "--adapters",
        metavar="NAME,NAME",
        type=lambda names: [name.strip() for name in names.split(",")],
        default=[],
        help="let the key use and list these adapters only, and ask NAME.SOMETHING in typed questions (default: all)",
    )
    opens.add_argument(
        "--again",
        action="store_true",
        help="make a further key for an owner that has one, with the same permissions and outstanding feedback",
    )
    arguments = parser.parse_args(argv)

    from blora.server.keys import line_of, new_key, read_keys

    key = new_key()
    with locked(arguments.file.resolve().parent, required=False):  # another run must not lose its key, nor this one
        before = arguments.file.read_text() if arguments.file.exists() else ""
        old = {known.name: known for known in read_keys(before, arguments.file).values()}.get(arguments.name)
        if old is not None and not arguments.again:
            raise ConfigError(
                f"a key named {arguments.name!r} is in {arguments.file} already: choose another name, or make a "
                "further key for the same owner with --again"
            )
        if old is None and arguments.again:
            raise ConfigError(f"no key named {arguments.name!r} is in {arguments.file} yet: leave --again out")
        if old is not None:
            line = line_of(old.name, old.scope, key, sorted(old.adapters or ()))
        else:
            line = line_of(arguments.name, "admin" if arguments.admin else "predict", key, arguments.adapters)
        after = before + ("" if before.endswith("\n") or not before else "\n") + line + "\n"
        read_keys(after, arguments.file)  # a file that the server would refuse must not replace a valid one
        _replace(arguments.file, after)
    print(key)
    sys.stderr.write(f"added {arguments.name} to {arguments.file}\n")
    return 0


def _replace(file: Path, text: str) -> None:
    """Replace a file's text atomically, keeping its owner, group and mode, and the symbolic links to it.

    A new file is readable by its owner alone.

    Raises:
        ConfigError: if the file's owner cannot be kept, or the file has hard links, which would keep the old text.
    """
    target = file.resolve()
    was = target.stat() if target.exists() else None
    if was is not None and was.st_nlink > 1:
        raise ConfigError(
            f"{target} has {was.st_nlink} hard links, and a new file could not replace them all: use symbolic links"
        )
    write_file(target, text, prepare=lambda descriptor: _keep(descriptor, was, target))


def _keep(descriptor: int, was: os.stat_result | None, target: Path) -> None:
    """Set the owner, group and mode of an open file to another file's, if there is one."""
    if was is None:
        return
    try:
        os.fchown(descriptor, was.st_uid, was.st_gid)
    except PermissionError as exc:
        raise ConfigError(
            f"{target} belongs to user {was.st_uid} and group {was.st_gid}, and this user cannot give a new file to "
            "them: run `blora key` as that user or as root"
        ) from exc
    os.fchmod(descriptor, was.st_mode & 0o7777)
