"""A report as headings, paragraphs, tables and figures, and its form in Markdown."""

import re
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["NONE", "Block", "Cell", "Document", "Figure", "Heading", "Paragraph", "Table", "markdown"]

NONE = "–"  # what was not measured


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell; bold marks the best of its column."""

    text: str
    bold: bool = False


@dataclass(frozen=True, slots=True)
class Heading:
    """Level 1 is the title."""

    level: int
    text: str


@dataclass(frozen=True, slots=True)
class Paragraph:
    """Plain text."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
    """Rows of as many cells as the header has names.

    Attributes:
        n_words: leading columns that hold words, and align left; the others hold numbers.
    """

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    n_words: int = 1


@dataclass(frozen=True, slots=True)
class Figure:
    """A picture.

    Attributes:
        name: its file's, without the suffix.
        svg: the picture.
        title: what it shows.
        caption: how to read it.
    """

    name: str
    svg: str
    title: str
    caption: str


Block = Heading | Paragraph | Table | Figure


@dataclass(frozen=True, slots=True)
class Document:
    """Blocks in reading order."""

    title: str
    blocks: tuple[Block, ...]

    @property
    def figures(self) -> list[Figure]:
        """Every picture."""
        return [block for block in self.blocks if isinstance(block, Figure)]


def markdown(document: Document) -> str:
    """The document in GitHub's Markdown, with its figures as files beside it."""
    return "\n\n".join([f"# {document.title}", *map(_markdown, document.blocks)]) + "\n"


def _markdown(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"{'#' * level} {_escape(text)}"
        case Paragraph(text):
            return _escape(text)
        case Figure(name, _, title, caption):
            return f"![{_escape(title)}]({name}.svg)\n\n{_escape(title)}: {_escape(caption)}"
        case Table(header, rows, n_words):
            aligned = ["---"] * n_words + ["--:"] * (len(header) - n_words)
            lines = [list(map(_escape, header)), aligned, *([_cell(cell) for cell in row] for row in rows)]
            return "\n".join(_line(line) for line in lines)


def _line(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _cell(cell: Cell) -> str:
    return f"**{_escape(cell.text)}**" if cell.bold else _escape(cell.text)


def _escape(text: str) -> str:
    """Without a meaning in Markdown: names of files and methods may hold any of these."""
    return re.sub(r"[\\`*|\[\]<>]|(?<!\w)_|_(?!\w)", r"\\\g<0>", text)
