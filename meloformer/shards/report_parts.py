"""The parts of a page that all reports share: its frame, cards and tables."""

from collections.abc import Iterable, Sequence
from html import escape

from meloformer.shards.report_style import STYLE


def page(title: str, parts: Sequence[str], footer: str, style: str = "") -> str:
    """A whole page that needs nothing but itself.

    Args:
        title: of the window.
        parts: HTML, one after the other.
        footer: a line of text below.
        style: CSS on top of what all reports have.
    """
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}{style}</style></head>\n<body><main>\n"
        + "\n".join(parts)
        + f"\n<footer>{escape(footer)}</footer>\n</main></body></html>\n"
    )


def card(title: str, content: str, caption: str = "") -> str:
    """A drawing or a table under its title.

    Args:
        title: text.
        content: HTML.
        caption: text below.
    """
    heading = f"<h3>{escape(title)}</h3>" if title else ""
    below = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f"<figure>{heading}{content}{below}</figure>"


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Cells of text; the first column is to the left."""
    cells = "".join(f"<th>{escape(name)}</th>" for name in head)
    lines = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><tr>{cells}</tr>{lines}</table></div>'
