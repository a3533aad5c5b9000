"""Flags of `blora serve`, one for each setting, with their help."""

from argparse import ArgumentParser
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo
from pydantic_settings import CliApp, CliSettingsSource

from blora.server.settings import Settings

__all__ = ["read_flags"]

_ABOUT = (
    "Serve adapters over HTTP. Each flag is also an environment variable, in capitals after BLORA_: "
    "--max-batch-tokens is BLORA_MAX_BATCH_TOKENS. A flag wins over its variable. docs/settings.md describes each in "
    "full."
)


def read_flags(argv: list[str]) -> Settings:
    """Return the settings from flags and environment.

    Args:
        argv: the flags, without the command's name.

    Raises:
        pydantic.ValidationError: if a value is out of range or of the wrong type.
    """
    parser = ArgumentParser("blora serve", description=_ABOUT, allow_abbrev=False)
    source = CliSettingsSource[Settings](Settings, root_parser=parser, add_argument_method=_add)
    return CliApp.run(Settings, cli_args=argv, cli_settings_source=source)


def _add(parser: ArgumentParser, *flags: str, **options: Any) -> None:
    field = Settings.model_fields[options["dest"]]
    if "metavar" in options:  # switches have no metavar
        options["metavar"] = _metavar(options["dest"], field)
    parser.add_argument(*flags, **options | {"help": _help(field)})


def _metavar(name: str, field: FieldInfo) -> str:
    """Return the placeholder of a flag's value: SECONDS, N, PATH, a list of values, or the last word of the flag."""
    if get_origin(field.annotation) is Literal:
        return f"{{{','.join(get_args(field.annotation))}}}"
    kinds = {field.annotation, *get_args(field.annotation)}
    if name.endswith("_s"):
        return "SECONDS"
    if kinds & {int, float}:
        return "N"
    return "PATH" if Path in kinds else name.rpartition("_")[2].upper()


def _help(field: FieldInfo) -> str:
    """Return the setting's description with its default, if it has one."""
    default = "" if field.default is False or field.default in (None, ()) else f" (default: {field.default})"
    return f"{field.description}{default}".replace("%", "%%")
