"""A table in Markdown."""

from collections.abc import Sequence

__all__ = ["markdown_table"]


def markdown_table(header: Sequence[str], cells: Sequence[Sequence[str]], *, words: bool = False) -> str:
    """The first column to the left, all others to the right, unless they hold words."""
    aligned = ["---", *["---" if words else "--:"] * (len(header) - 1)]
    return "\n".join("| " + " | ".join(row) + " |" for row in [header, aligned, *cells])
