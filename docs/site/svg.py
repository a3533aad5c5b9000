"""A small SVG canvas whose pictures are readable on a light and on a dark page."""

from dataclasses import dataclass, field
from html import escape

__all__ = ["Canvas"]

# Class names are what a shape stands for; the reader's system chooses the palette.
_LIGHT = {"ink": "#1b1f24", "faint": "#8a929c", "first": "#1f6fb4", "second": "#b4530a", "third": "#2c7a4b"}
_DARK = {"ink": "#e6e9ed", "faint": "#8a929c", "first": "#79b8f0", "second": "#f2a65e", "third": "#7fce9d"}


def _rules(palette: dict[str, str]) -> str:
    return "".join(f".{name}{{fill:{colour}}}line.{name}{{stroke:{colour}}}" for name, colour in palette.items())


_STYLE = (
    "text{font:13px system-ui,sans-serif}.title{font-weight:600}"
    f"{_rules(_LIGHT)}@media(prefers-color-scheme:dark){{{_rules(_DARK)}}}"
)


@dataclass
class Canvas:
    """A picture of a width and a height in pixels, with a title for those who cannot see it."""

    width: int
    height: int
    title: str
    parts: list[str] = field(default_factory=list)

    def text(self, x: float, y: float, words: str, kind: str = "ink", anchor: str = "start") -> None:
        """Write words at a baseline; `anchor` is start, middle or end."""
        self.parts.append(f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>')

    def line(self, x1: float, y1: float, x2: float, y2: float, kind: str = "faint", width: float = 1) -> None:
        """Draw a line."""
        style = f' style="stroke-width:{width:g}"' if width != 1 else ""
        self.parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"{style}/>')

    def dot(self, x: float, y: float, kind: str, radius: float = 3, opacity: float = 0.6) -> None:
        """Draw a dot."""
        self.parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}" class="{kind}" opacity="{opacity:g}"/>')

    def box(self, x: float, y: float, width: float, height: float, kind: str) -> None:
        """Draw a filled rectangle."""
        size = f'width="{width:.1f}" height="{height:.1f}"'
        self.parts.append(f'<rect x="{x:.1f}" y="{y:.1f}" {size} class="{kind}"/>')

    def svg(self) -> str:
        """Return the picture as the text of an SVG file."""
        head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {self.width} {self.height}" role="img">'
        return "\n".join([head, f"<title>{escape(self.title)}</title><style>{_STYLE}</style>", *self.parts, "</svg>\n"])
