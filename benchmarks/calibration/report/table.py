"""A table of a report: text by row and column, the best of a column marked."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.markdown import escape, markdown_table

__all__ = ["NONE", "Best", "Table"]

NONE = "–"  # what was not measured


class Best(str):
    """The text of a cell that is the best of its column, and bold for it."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Table:
    """Rows with one cell for each name in the header.

    Attributes:
        n_words: leading columns that hold words, and align left; the others hold numbers.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    n_words: int = 1

    def markdown(self) -> str:
        """Return the table in Markdown."""
        rows = [
            [f"**{escape(cell)}**" if isinstance(cell, Best) else escape(cell) for cell in row] for row in self.rows
        ]
        return markdown_table([*map(escape, self.header)], rows, n_words=self.n_words)
