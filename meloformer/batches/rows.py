"""Rows: windows that share one sequence, under two capacities, tokens and bars."""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

from meloformer.batches.windows import (
    BarLines,
    PieceIndex,
    SizedWindow,
    Window,
    bar_too_long,
)

# Free lengths tried per window where tokens fit and bars do not; past that a new row is opened.
_MAX_TRIES = 16


class Row(NamedTuple):
    """One sequence of a batch.

    Args:
        windows: what stands in it, in order.
        tokens: upper bound on its tokens before padding.
        bars: bars of all its windows.
        length: its own shape; a micro-batch may pad it further.
    """

    windows: tuple[Window, ...]
    tokens: int
    bars: int
    length: int


def best_fit(windows: list[SizedWindow], max_tokens: int, max_bars: int) -> list[list[SizedWindow]]:
    """Share rows among windows: longest first, each into the fullest row that still takes it.

    Args:
        windows: each within both capacities; equal ones keep their order.
        max_tokens: token capacity of a row.
        max_bars: bar capacity of a row.

    Source: best-fit decreasing bin packing; a bit per free length finds the fullest row at once.

    >>> rows = best_fit([SizedWindow(Window(i, 0, 1), t, 1) for i, t in enumerate([5, 3, 4])], 8, 8)
    >>> [[sized.window.piece for sized in row] for row in rows]
    [[0, 1], [2]]
    """
    by_size = sorted(
        windows, key=lambda w: max(w.tokens * max_bars, w.bars * max_tokens), reverse=True
    )
    rows: list[list[SizedWindow]] = []
    free_bars: list[int] = []
    rows_with_free: list[list[int]] = [[] for _ in range(max_tokens + 1)]
    occupied = 0  # bit f is set where rows_with_free[f] is not empty
    for sized in by_size:
        candidates, tries, chosen, free = occupied >> sized.tokens, 0, len(rows), max_tokens
        while candidates and tries < _MAX_TRIES:
            same_free = rows_with_free[sized.tokens + (candidates & -candidates).bit_length() - 1]
            tries += 1
            if free_bars[same_free[-1]] >= sized.bars:
                chosen = same_free.pop()
                free = sized.tokens + (candidates & -candidates).bit_length() - 1
                if not same_free:
                    occupied ^= 1 << free
                break
            candidates &= candidates - 1
        if chosen == len(rows):
            rows.append([])
            free_bars.append(max_bars)
        rows[chosen].append(sized)
        free_bars[chosen] -= sized.bars
        free -= sized.tokens
        if free and free_bars[chosen]:
            rows_with_free[free].append(chosen)
            occupied |= 1 << free
    return rows


def next_fit(
    index: PieceIndex, windows: Iterable[SizedWindow], max_tokens: int, max_bars: int
) -> Iterator[list[SizedWindow]]:
    """Fill rows in the order given; a window that does not fit goes on, cut at a bar line.

    Every bar is in exactly one row. Fed with the windows of its own last rows first, it makes
    those rows again, so that a stream may be stopped and continued.

    Raises:
        BatchError: a single bar is longer than a row.
    """
    row: list[SizedWindow] = []
    free, free_bars = max_tokens, max_bars
    for sized in windows:
        while sized.tokens > free or sized.bars > free_bars:
            piece, first, end = sized.window
            bar_lines = BarLines.of(index, piece)
            cut = bar_lines.fit(first, free, free_bars)
            if cut > first:
                row.append(bar_lines.window(piece, first, cut))
                sized = bar_lines.window(piece, cut, end)
            elif not row:
                raise bar_too_long(index, piece, first, max_tokens)
            yield row
            row, free, free_bars = [], max_tokens, max_bars
        row.append(sized)
        free -= sized.tokens
        free_bars -= sized.bars
    if row:
        yield row
