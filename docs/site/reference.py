"""Generates docs/reference from the code: the commands, the routes, the metrics and the Python interface.

`python -m docs.site.reference` writes the pages; a test compares them with the code.
"""

import importlib
import sys
import tomllib
from argparse import SUPPRESS, Action, ArgumentParser
from collections.abc import Callable, Iterator
from typing import Any
from unittest.mock import patch

from blora.cli import GROUP
from blora.client.exchange import kind_of
from blora.client.retries import WORTH_ANOTHER
from blora.scores import TABLE
from blora.server.errors import CODES
from docs.site.metrics_reference import metrics_page
from docs.site.python_reference import NOTE, cell, python_page
from docs.site.stage import DOCS, ROOT

__all__ = ["PAGES"]

# Schemas that the page of the routes shows.
SCHEMAS = (
    *("PredictRequest", "BatchRequest", "Message", "Policy"),
    *("Prediction", "BatchResponse", "AbstainReason", "ChoiceProbability", "AdapterRef", "PolicyInForce"),
    *("blora__client__answers__Usage", "Timing"),
    *("DecisionsRequest", "PredicateQuestion", "ChoiceQuestion", "Choice", "ScoreQuestion", "Level-Input"),
    *("DecisionsResponse", "PredicateAnswer", "ChoiceAnswer", "ValueProbability", "ScoreAnswer", "LevelProbability"),
    "RefusalAnswer",
    *("SystemOneRequest", "SystemOneNoul", "NoulCriteria", "SystemOneChoice", "SystemOneScore"),
    *("SystemOneResponse", "NoulAnswer", "SystemOneChoiceAnswer", "SystemOneScoreAnswer", "RefusedAnswer"),
    *("Scored", "TellOutcome", "Outcome", "LoadAdapter", "PutAdapter", "AdapterList", "AdapterCard"),
    *("ModelList", "ModelCard", "ModelMetadata", "Info", "ModelDescription", "Limits", "ErrorDetail"),
)
# Answers whose fields of our own are shown once, as those of `Scored`.
WITH_SCORED = (
    *("PredicateAnswer", "ChoiceAnswer", "ScoreAnswer"),
    *("NoulAnswer", "SystemOneChoiceAnswer", "SystemOneScoreAnswer"),
)

ERRORS = """\
The body of an error is `{"error": {"message", "type", "code", "param"}}` ([ErrorDetail](#errordetail)). In a batch,
each input has an answer or an error of its own. With `queue_full`, `rate_limited` and `too_many_connections` the
header `Retry-After` says after how many seconds to try again. A question changes nothing on the server, so it may be
sent twice.
"""


class _Found(Exception):  # noqa: N818  # no error: it carries a parser out of a command
    def __init__(self, parser: ArgumentParser) -> None:
        self.parser = parser


def parsers() -> Iterator[ArgumentParser]:
    """Return the parser of every command of this checkout, by name."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]

    def found(parser: ArgumentParser, *_: object) -> None:
        raise _Found(parser)

    for _, module in sorted(project["entry-points"][GROUP].items()):
        with patch.object(ArgumentParser, "print_help", found):
            try:
                importlib.import_module(module).main(["--help"])
            except _Found as parser:
                yield parser.parser


def commands_page() -> str:
    """Return the page of the commands; the flags of `blora serve` are a page of their own."""
    parts = ["# Commands\n", NOTE, "`blora COMMAND --help` prints the same.\n"]
    for parser in parsers():
        parts.append(f"## {parser.prog}\n\n{_sentence(parser.description or '')}\n")
        if parser.prog == "blora serve":
            parts.append("Its flags, which are environment variables too: [settings](../settings.md).\n")
            continue
        for group in parser._action_groups:
            shown = [one for one in group._group_actions if one.help is not SUPPRESS and one.dest != "help"]
            if shown:
                title = "arguments" if group.title == "positional arguments" else group.title
                rows = "".join(f"| {_name(action)} | {_help(parser, action)} |\n" for action in shown)
                parts.append(f"| {title} | meaning |\n|---|---|\n{rows}")
        if parser.epilog:
            parts.append(f"{_sentence(parser.epilog)}\n")
    return "\n".join(parts)


def _name(action: Action) -> str:
    if not action.option_strings:
        return f"`{action.dest}`"
    flag = action.option_strings[-1]
    if action.nargs == 0:
        return f"`{flag}`"
    value = action.metavar or ("|".join(map(str, action.choices)) if action.choices else action.dest.upper())
    return f"`{flag} {value}`".replace("|", "\\|")


def _help(parser: ArgumentParser, action: Action) -> str:
    text = parser._get_formatter()._expand_help(action)
    required = " (required)" if action.required and action.option_strings else ""
    return cell(text + required)


def _sentence(text: str) -> str:
    text = " ".join(text.split())
    return text[:1].upper() + text[1:] + ("" if text.endswith(".") else ".")


def routes_page() -> str:
    """Return the page of the routes, from the OpenAPI document of a server."""
    from blora.server.app import create_app
    from blora.server.schemas.decisions.answers import Scored
    from blora.server.settings import Settings

    document = create_app(Settings(adapters="demo=adapter")).openapi()
    parts = [
        "# HTTP\n",
        NOTE,
        "A running server has the full schemas at `/openapi.json`, and at `/docs` a page with requests that run.\n",
        "Every response has the header `x-request-id`: that of the request, if it has 1 to 64 letters, digits, `.`, "
        "`_` or `-`, otherwise a new one. The log names it as `request_id`.\n",
        "| route | what it does | body | answer | statuses |\n|---|---|---|---|---|",
    ]
    for path, item in document["paths"].items():
        for method, operation in item.items():
            statuses = sorted(operation["responses"])
            done = next(status for status in statuses if status.startswith("2"))
            row = (
                f"`{method.upper()} {path}`",
                cell(operation["summary"]),
                _body(operation.get("requestBody", {})),
                _body(operation["responses"][done]),
                ", ".join(statuses),
            )
            parts.append(f"| {' | '.join(row)} |")
    parts.append(f"\n## Errors\n\n{ERRORS}\n{_errors()}")
    scored = Scored.model_json_schema()
    meanings = {score.name: score.meaning for score in TABLE}
    schemas = document["components"]["schemas"] | {"Scored": scored}
    for name in SCHEMAS:
        about, elsewhere = cell(schemas[name].get("description", "")), {}
        if name in WITH_SCORED:
            about, elsewhere = f"{about} It also has the fields of [Scored](#scored).", scored["properties"]
        if name == "BatchRequest":
            about = f"{about} They are those of [PredictRequest](#predictrequest)."
            elsewhere = schemas["PredictRequest"]["properties"]
        parts.append(f"\n## {_title(name)}\n\n{about}\n\n| field | type | meaning |\n|---|---|---|")
        for field, schema in schemas[name]["properties"].items():
            if field not in elsewhere:
                meaning = schema.get("description") or meanings.get(field, "")
                if name == "Limits":
                    meaning = Settings.model_fields[field].description
                parts.append(f"| `{field}` | {cell(_type(schema))} | {cell(meaning)} |")
    return "\n".join(parts) + "\n"


def _body(part: dict[str, Any]) -> str:
    """Return the type of the JSON that a request or a response holds; nothing if it holds none."""
    schema = part.get("content", {}).get("application/json", {}).get("schema")
    return _type(schema) if schema else ""


def _errors() -> str:
    """Return the table of the error codes, by status, and whether the Python client sends such a request again."""
    rows = ["| status | code | meaning | the Python client |\n|---|---|---|---|"]
    for code, (status, meaning) in sorted(CODES.items(), key=lambda entry: entry[1].status):
        again = issubclass(kind_of(status), WORTH_ANOTHER)
        rows.append(f"| {status} | `{code}` | {cell(meaning)} | {'tries again' if again else 'raises'} |")
    return "\n".join(rows)


def _title(name: str) -> str:
    """Return the name of a schema without its module, and without the mark of a schema that answers have too."""
    return name.rpartition("__")[2].removesuffix("-Input")


def _type(schema: dict[str, Any]) -> str:
    """Return the type of a JSON schema in words, with links to the schemas of the page."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f"[{_title(name)}](#{_title(name).lower()})" if name in SCHEMAS else _title(name)
    if "const" in schema:
        return f"`{schema['const']}`"
    for several in ("anyOf", "oneOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(map(_type, schema[several])))
    if "enum" in schema:
        return " or ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_type(schema['items'])}"
    if isinstance(values := schema.get("additionalProperties"), dict) and values:
        return f"object of {_type(values)}"
    return str(schema.get("type", "any"))


PAGES: dict[str, Callable[[], str]] = {
    "cli": commands_page,
    "http": routes_page,
    "metrics": metrics_page,
    "python": python_page,
}


def main() -> int:
    """Write every page."""
    for name, page in PAGES.items():
        (DOCS / "reference" / f"{name}.md").write_text(page())
    return 0


if __name__ == "__main__":
    sys.exit(main())
