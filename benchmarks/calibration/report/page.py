"""The report as one self-contained HTML page: its own style, its pictures inline, light or dark as the reader's are."""

import re
from html import escape

from benchmarks.calibration.report.document import Block, Document, Figure, Heading, Paragraph, Table
from benchmarks.calibration.report.style import DARK, GRID, INK, MUTED, PAPER

__all__ = ["html"]


def _variable(colour: str) -> str:
    return f"--c{colour[1:]}"


def _colours(chosen: dict[str, str]) -> str:
    return " ".join(f"{_variable(colour)}: {shade};" for colour, shade in chosen.items())


_PAPER, _INK, _MUTED, _GRID = (f"var({_variable(colour)})" for colour in (PAPER, INK, MUTED, GRID))

_STYLE = f"""
:root {{ color-scheme: light dark; {_colours({colour: colour for colour in DARK})} }}
@media (prefers-color-scheme: dark) {{ :root {{ {_colours(DARK)} }} }}
body {{ background: {_PAPER}; color: {_INK}; font: 16px/1.5 system-ui, sans-serif;
       margin: 0 auto; max-width: 68rem; padding: 1rem 1.5rem 4rem; }}
h2 {{ border-top: 2px solid {_GRID}; margin-top: 3rem; padding-top: 1rem; }}
h3 {{ margin-top: 2.5rem; }}
p, figcaption {{ max-width: 48rem; }}
.table, figure {{ margin: 1rem 0; overflow-x: auto; }}
table {{ border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }}
th, td {{ border-bottom: 1px solid {_GRID}; padding: 0.3rem 0.7rem; text-align: left; white-space: nowrap; }}
th {{ border-bottom: 2px solid {_MUTED}; vertical-align: bottom; }}
.number {{ text-align: right; }}
figure svg {{ display: block; height: auto; max-width: 100%; min-width: 36rem; }}
figcaption {{ color: {_MUTED}; font-size: 0.9rem; }}
""".strip()


def html(document: Document) -> str:
    """The page, which loads nothing from anywhere."""
    body = "\n".join(map(_html, document.blocks))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(document.title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n"
        f"<body>\n<h1>{escape(document.title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _html(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Paragraph(text):
            return f"<p>{escape(text)}</p>"
        case Figure(_, svg, title, caption):
            picture = _themed(svg).replace("<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1)
            return f"<figure>\n{picture}<figcaption>{escape(f'{title}: {caption}')}</figcaption>\n</figure>"
        case Table():
            return _table(block)


def _themed(svg: str) -> str:
    """The picture with the page's colours in the place of its own."""
    return re.sub("|".join(DARK), lambda match: f"var({_variable(match.group())})", svg)


def _table(table: Table) -> str:
    def row(cells: list[str], tag: str) -> str:
        attributes = ["" if i < table.n_words else ' class="number"' for i in range(len(cells))]
        inner = "".join(f"<{tag}{a}>{cell}</{tag}>" for cell, a in zip(cells, attributes, strict=True))
        return f"<tr>{inner}</tr>"

    head = row([escape(name) for name in table.header], "th")
    body = "\n".join(
        row([f"<b>{escape(cell.text)}</b>" if cell.bold else escape(cell.text) for cell in cells], "td")
        for cells in table.rows
    )
    return f'<div class="table"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table></div>'
