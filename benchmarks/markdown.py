"""A table in Markdown."""

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]]) -> str:
    """The first column to the left, all others to the right."""
    aligned = ["---", *["--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, aligned, *cells])
