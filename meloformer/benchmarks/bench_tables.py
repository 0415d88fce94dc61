"""Figures of benches as tables for people."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from meloformer.benchmarks.alternation import BYTES_PER_MIB

# Of tables that go into files, where nobody's terminal says how wide they may be.
TABLE_WIDTH = 160

Format = Callable[[Any], str]


def plain(value: Any) -> str:
    """As it is.

    >>> plain("halves"), plain(12000)
    ('halves', '12,000')
    """
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def rounded(decimals: int) -> Format:
    """A number with so many decimals."""
    return lambda value: f"{value:,.{decimals}f}"


def percent(value: float) -> str:
    """A share in per cent.

    >>> percent(0.456)
    '45.6 %'
    """
    return f"{100 * value:.1f} %"


def mebibytes(value: float) -> str:
    """Bytes in MiB.

    >>> mebibytes(3 << 20)
    '3'
    """
    return f"{value / BYTES_PER_MIB:,.0f}"


def table_console() -> Console:
    """Standard output as it is now; where that is no terminal, as wide as tables want."""
    return Console(width=None if sys.stdout.isatty() else TABLE_WIDTH)


def table_of(
    title: str, rows: Sequence[Mapping[str, Any]], columns: Mapping[str, tuple[str, Format]]
) -> Table:
    """A table with a line for each row and a dash where a row has no such figure.

    Args:
        title: above the table.
        rows: figures by name; `why`, a reason, fills the last column.
        columns: for each name the heading and how the figure is written; a name that no row has
            gets no column.
    """
    table = Table(title=title, title_justify="left")
    shown = {
        name: column
        for name, column in columns.items()
        if any(row.get(name) is not None for row in rows)
    }
    for heading, write in shown.values():
        table.add_column(heading, justify="left" if write is plain else "right", no_wrap=True)
    if any(row.get("why") for row in rows):
        shown |= {"why": ("why", plain)}
        table.add_column("why", overflow="fold")
    for row in rows:
        texts = (
            "-" if row.get(name) is None else write(row[name]) for name, (_, write) in shown.items()
        )
        table.add_row(*(escape(text) for text in texts))
    return table
