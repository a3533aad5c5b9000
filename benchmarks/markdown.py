"""Tables in Markdown."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

__all__ = ["Columns", "escape", "markdown_table", "on_machine", "on_machines", "record_table"]


# By heading, a format string that the record of a row fills in, or a function of the record.
Columns = Mapping[str, str | Callable[[Any], str]]


def escape(text: str) -> str:
    """Return the text without a meaning in Markdown: names of files and methods may hold any of these characters."""
    return re.sub(r"[\\`*|\[\]<>]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)


def on_machine(machine: Mapping[str, Any]) -> str:
    """Return the cores and the processor of a machine, as `blora.training.provenance.machine` has them."""
    return f"{machine['cores']} cores of {machine['processor']}"


def on_machines(results: Iterable[Mapping[str, Any]]) -> str:
    """Return the same of the machines of results, each once.

    >>> a, b = {"cores": 2, "processor": "A"}, {"cores": 4, "processor": "B"}
    >>> on_machines([{"machine": a}, {"machine": b}, {"machine": a}])
    '2 cores of A and 4 cores of B'
    """
    return " and ".join(dict.fromkeys(on_machine(result["machine"]) for result in results))


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], *, n_words: int = 1) -> str:
    """Return a table whose first `n_words` columns align left, as words do, and the others right."""
    aligned = ["---"] * n_words + ["--:"] * (len(header) - n_words)
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, aligned, *rows])


def record_table(records: Iterable[Mapping[str, Any]], columns: Columns, *, n_words: int = 1) -> str:
    """Return a table with a row for each record, whose first `n_words` columns align left.

    >>> print(record_table([{"risk": 0.1, "rows": {"kept": 5}}], {"risk": "{risk:.2f}", "kept": "{rows[kept]}"}))
    | risk | kept |
    | --- | --: |
    | 0.10 | 5 |
    """
    rows = [
        [column.format_map(record) if isinstance(column, str) else column(record) for column in columns.values()]
        for record in records
    ]
    return markdown_table([*columns], rows, n_words=n_words)
