"""The `blora` command, whose sub-commands are entry points of which only the chosen one is imported."""

import gc
import importlib
import sys
from argparse import Action, ArgumentDefaultsHelpFormatter, ArgumentParser, _ArgumentGroup
from importlib.metadata import EntryPoint, entry_points, version

from blora.errors import BloraError, install_hint
from blora.processor import limit_threads

__all__ = ["CommandHelp", "add_model", "main"]

GROUP = "blora.commands"
# The extra that a command needs, by the beginning of its module's name; train for the others.
EXTRAS = {"blora.server.": "serve", "blora.commands.": "model", "blora.client.mcp": "mcp"}
# New objects between two runs of Python's garbage collector. Importing torch and transformers makes a million that
# stay. With Python's 700 between two runs, looking for garbage among them takes a sixth of a command's start.
GC_THRESHOLD = 50_000


def main(argv: list[str] | None = None) -> int:
    """Run a sub-command and return the exit status: 0 for success, 1 for a failure, 2 for wrong usage."""
    arguments = sys.argv[1:] if argv is None else argv
    commands = {entry.name: entry for entry in entry_points(group=GROUP)}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(_usage(commands))
        return 0 if arguments else 2
    if arguments[0] == "--version":
        print(f"blora {version('blora')}")
        return 0
    entry = commands.get(arguments[0])
    if entry is None:
        print(f"blora: there is no command {arguments[0]!r}: use one of {', '.join(sorted(commands))}", file=sys.stderr)
        return 2
    limit_threads()  # before a numerical library is loaded
    gc.set_threshold(GC_THRESHOLD)
    try:
        module = importlib.import_module(entry.value)
        return int(module.main(arguments[1:]))
    except ImportError as exc:
        if exc.name is None or exc.name.partition(".")[0] == "blora":
            raise
        print(f"`blora {entry.name}` needs the package {exc.name}; {install_hint(_extra(entry))}", file=sys.stderr)
        return 2
    except BloraError as exc:
        print(f"blora {entry.name}: {exc}", file=sys.stderr)
        return 1
    except OSError as exc:
        if exc.errno is None:  # raised by a library, with a message of its own
            print(f"blora {entry.name}: {exc}", file=sys.stderr)
            return 1
        where = f"{exc.filename}: " if exc.filename else ""
        print(f"blora {entry.name}: {where}{exc.strerror}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130


def _extra(entry: EntryPoint) -> str:
    return next((extra for package, extra in EXTRAS.items() if entry.value.startswith(package)), "train")


def _usage(commands: dict[str, EntryPoint]) -> str:
    lines = [
        "usage: blora COMMAND ...",
        "",
        "Adapters with a posterior, and a server that knows when it does not know.",
        "",
    ]
    for name, entry in sorted(commands.items()):
        lines.append(f"  {name:<11} {importlib.import_module(entry.value).SUMMARY}")
    return "\n".join([*lines, "", "`blora COMMAND --help` describes a command."])


class CommandHelp(ArgumentDefaultsHelpFormatter):
    """Help formatter that appends each option's default, unless the option has none or its help names it."""

    def _get_help_string(self, action: Action) -> str | None:
        nothing = action.default is None or action.default is False or action.default == []
        if nothing or "(default: " in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


def add_model(
    parser: ArgumentParser | _ArgumentGroup,
    *,
    default: str | None = "embedded",
    own: str = "the one that the adapter was trained on",
) -> None:
    """Add the flags for the base model, its device and its precision.

    Args:
        parser: the parser of the command.
        default: the default base model; None for the own one of an adapter or a LoRA.
        own: description of that own base model, for the help text.
    """
    told = "" if default is not None else f" (default: {own})"
    parser.add_argument(
        "--base-model",
        default=default,
        help=f"hub id[@revision], folder, .gguf file, or embedded; MODEL+ENCODER for a companion too{told}",
    )
    parser.add_argument("--device", default="auto", help="device to compute on: auto, cpu, cuda, cuda:1 ...")
    parser.add_argument(
        "--dtype", default="auto", help="precision of the base model: auto, float32, bfloat16 or float16"
    )


if __name__ == "__main__":
    sys.exit(main())
