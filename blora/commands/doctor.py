"""`blora doctor`: describes this machine, the installation and the adapters, as text for an issue."""

import json
from argparse import ArgumentParser
from pathlib import Path
from typing import TYPE_CHECKING, Any

from blora.cli import CommandHelp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

__all__ = ["SUMMARY", "main"]

SUMMARY = "describe this machine and its adapters, for an issue"
WIDTH = 11


def _parser() -> ArgumentParser:
    parser = ArgumentParser(
        "blora doctor",
        description=f"{SUMMARY}. Nothing is sent anywhere. The home folder is shown as ~, and of environment variables "
        "only the names.",
        epilog="Exit code: 0 if every part could be described, 1 if one has an error or a path leads to no adapter.",
        formatter_class=CommandHelp,
    )
    parser.add_argument("adapters", nargs="*", type=Path, help="adapter folders, or folders of adapter folders")
    parser.add_argument("--base-model", default="embedded", help="as for blora serve")
    parser.add_argument("--no-base-model", action="store_true", help="load no base model, which takes seconds")
    parser.add_argument("--device", default="auto", help="device to describe: auto, cpu, cuda, cuda:1 ...")
    parser.add_argument("--dtype", default="auto", help="precision to serve in: auto, float32, bfloat16 or float16")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def main(argv: list[str]) -> int:
    """Print the facts; return 1 if a part has an error or a path leads to no adapter."""
    arguments = _parser().parse_args(argv)

    from blora.commands.diagnosis import diagnose

    facts = diagnose(
        arguments.adapters,
        base_model=None if arguments.no_base_model else arguments.base_model,
        device=arguments.device,
        dtype=arguments.dtype,
    )
    print(json.dumps(facts, indent=1) if arguments.json else _text(facts))
    return 1 if facts["without_adapters"] or _has_error(facts) else 0


def _has_error(facts: Any) -> bool:
    if isinstance(facts, dict):
        return "error" in facts or any(map(_has_error, facts.values()))
    return isinstance(facts, list) and any(map(_has_error, facts))


def _text(facts: dict[str, Any]) -> str:
    """Return the facts as lines, each with the name of its part in front."""
    lines = [
        ("blora", "{version}, revision {revision}".format(**facts["blora"])),
        ("system", "Python {python}, {platform}".format(**facts["system"])),
        ("packages", ", ".join(f"{name} {found or 'not installed'}" for name, found in facts["packages"].items())),
        ("processor", _or_error(facts["processor"], _processor)),
        ("GPU", _or_error(facts["gpus"], _gpus)),
        ("dtype", _or_error(facts["dtype"], _dtype)),
        ("cache", _or_error(facts["cache"], _cache)),
        *([("base model", _or_error(facts["base_model"], _base_model))] if "base_model" in facts else []),
        *_adapters(facts),
        ("variables", ", ".join(facts["variables"]) or "none"),
    ]
    return "\n".join(f"{name:<{WIDTH}} {text}" for name, text in lines)


def _or_error(facts: Any, show: "Callable[[Any], str]") -> str:
    """Return a part's facts as text, or its error."""
    return f"ERROR: {facts['error']}" if isinstance(facts, dict) and "error" in facts else show(facts)


def _processor(facts: dict[str, Any]) -> str:
    extensions = " ".join(facts["extensions"]) or "no known extensions"
    memory = f", {facts['memory_gib']} GiB" if facts["memory_gib"] is not None else ""
    limit = f", limit {facts['cpu_limit']:g}" if facts["cpu_limit"] is not None else ""
    cores = f"{facts['usable_cores']} of {facts['cores']} cores usable{limit}, {facts['threads']} threads"
    return f"{facts['name']}, {cores}{memory}; {extensions}"


def _gpus(facts: list[dict[str, Any]]) -> str:
    each = ("{name}, compute capability {capability}, {memory_gib} GiB".format(**gpu) for gpu in facts)
    return "; ".join(each) or "none that torch can use"


def _dtype(facts: dict[str, Any]) -> str:
    return (
        f"{facts['in_use']} for {facts['asked']} on {facts['device']}, which computes in {', '.join(facts['native'])}"
    )


def _cache(facts: dict[str, Any]) -> str:
    access = "writable" if facts["writable"] else "not writable"
    return f"{facts['folder']}, {access}; holds {', '.join(facts['holds']) or 'no model'}"


def _base_model(facts: dict[str, Any]) -> str:
    runs = "runs in parts" if facts["runs_in_parts"] else f"runs whole, because {facts['runs_whole_because']}"
    companion = f", with the companion {facts['companion']}" if facts["companion"] is not None else ""
    return f"{facts['id']} (revision {facts['revision'] or 'unknown'}) in {facts['dtype']}: {runs}{companion}"


def _adapters(facts: dict[str, Any]) -> "Iterator[tuple[str, str]]":
    for found in facts["adapters"]:
        yield "adapter", f"{found['folder']}: {_or_error(found, _adapter)}"
    for folder in facts["without_adapters"]:
        yield "adapter", f"{folder}: ERROR: no adapter is in this folder or directly below it: check the path"


def _adapter(facts: dict[str, Any]) -> str:
    promises = [f"{dtype} ({promise})" for dtype, promise in facts["calibrated"].items()]
    calibrated = f"calibrated for {', '.join(promises)}" if promises else "not calibrated"
    if facts["of_other_contents"]:
        calibrated += f"; {facts['of_other_contents']} calibrations of other contents, which do not hold"
    if promises and facts["calibrated_for_dtype_in_use"] is False:
        calibrated += "; not for the dtype above"
    models = " and ".join(name for name in (facts["base_model"], facts["companion"]) if name is not None)
    return f"{facts['kind']} on {models}, {facts['draws']} draws, {facts['digest'][:19]}; {calibrated}"
