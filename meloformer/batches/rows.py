"""Rows: windows that share one sequence, under two capacities, tokens and bars."""

from bisect import bisect_right
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.windows import Window, Windows, bar_lines, bar_too_long
from meloformer.model.masks import num_summaries

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


@dataclass(frozen=True, eq=False)
class Rows:
    """R rows as a table; `Row` objects are made of those that a step wants.

    Args:
        windows: windows of all rows, row after row.
        edges: (R + 1,) where the windows of each row begin.
        tokens: (R,) upper bounds.
        bars: (R,).
        length: (R,) shapes.
    """

    windows: Windows
    edges: np.ndarray
    tokens: np.ndarray
    bars: np.ndarray
    length: np.ndarray

    @classmethod
    def of(cls, windows: Windows, edges: np.ndarray, row_lengths: tuple[int, ...]) -> "Rows":
        """Give filled rows the shortest length that takes their tokens and their bars.

        Args:
            windows: row after row.
            edges: (R + 1,) where the windows of each row begin.
            row_lengths: shapes, ascending.
        """
        tokens, bars = (
            np.diff(np.concatenate([[0], np.cumsum(of_window)])[edges])
            for of_window in (windows.tokens, windows.bars)
        )
        bars_of_length = [num_summaries(length) for length in row_lengths]
        shape = np.maximum(
            np.searchsorted(row_lengths, tokens), np.searchsorted(bars_of_length, bars)
        )
        return cls(windows, edges, tokens, bars, np.array(row_lengths)[shape])

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, number: int) -> Row:
        first, end = self.edges[number : number + 2].tolist()
        windows = self.windows.table[:3, first:end].T.tolist()
        return Row(
            tuple(Window(*window) for window in windows),
            int(self.tokens[number]),
            int(self.bars[number]),
            int(self.length[number]),
        )

    def windows_of(self, rows: np.ndarray) -> Windows:
        """Windows of some rows, in their order."""
        parts = [np.arange(self.edges[row], self.edges[row + 1]) for row in rows.tolist()]
        return self.windows[np.concatenate([np.zeros(0, dtype=np.int64), *parts])]


def best_fit(windows: Windows, max_tokens: int, max_bars: int) -> tuple[Windows, np.ndarray]:
    """Share rows among windows: longest first, each into the fullest row that still takes it.

    Args:
        windows: each within both capacities; equal ones keep their order.
        max_tokens: token capacity of a row.
        max_bars: bar capacity of a row.

    Returns:
        The windows row after row, and (R + 1,) where those of each row begin.

    Source: best-fit decreasing bin packing; a bit per free length finds the fullest row at once.

    >>> windows = Windows.whole(np.arange(3), np.array([5, 3, 4]), np.ones(3))
    >>> placed, edges = best_fit(windows, 8, 8)
    >>> placed.piece.tolist(), edges.tolist()
    ([0, 1, 2], [0, 2, 3])
    """
    size = np.maximum(windows.tokens * max_bars, windows.bars * max_tokens)
    order = np.argsort(-size, kind="stable")
    row_of: list[int] = []
    free_bars: list[int] = []
    rows_with_free: list[list[int]] = [[] for _ in range(max_tokens + 1)]
    occupied = 0  # bit f is set where rows_with_free[f] is not empty
    for tokens, bars in zip(
        windows.tokens[order].tolist(), windows.bars[order].tolist(), strict=True
    ):
        candidates, tries, chosen, free = occupied >> tokens, 0, len(free_bars), max_tokens
        while candidates and tries < _MAX_TRIES:
            lowest = candidates & -candidates
            length = tokens + lowest.bit_length() - 1
            same_free = rows_with_free[length]
            tries += 1
            if free_bars[same_free[-1]] >= bars:
                chosen, free = same_free.pop(), length
                if not same_free:
                    occupied ^= 1 << free
                break
            candidates ^= lowest
        if chosen == len(free_bars):
            free_bars.append(max_bars)
        row_of.append(chosen)
        free_bars[chosen] -= bars
        free -= tokens
        if free and free_bars[chosen]:
            if not rows_with_free[free]:
                occupied |= 1 << free
            rows_with_free[free].append(chosen)
    row_of_window = np.array(row_of, dtype=np.int64)
    row_after_row = np.argsort(row_of_window, kind="stable")
    sizes = np.bincount(row_of_window, minlength=len(free_bars))
    return windows[order[row_after_row]], np.concatenate([[0], np.cumsum(sizes)])


def next_fit(
    index: PieceIndex, windows: Windows, max_tokens: int, max_bars: int
) -> tuple[Windows, np.ndarray]:
    """Fill rows in the order given; a window that does not fit goes on, cut at a bar line.

    Every bar is in exactly one row. Fed with the windows of its own last rows first, it makes
    those rows again, so that a stream may be stopped and continued.

    Returns:
        The windows row after row, and (R + 1,) where those of each row begin.

    Raises:
        BatchError: a single bar is longer than a row.
    """
    # Tokens and bars before each window, to find where a row is full without walking there.
    tokens_before = [0, *np.cumsum(windows.tokens).tolist()]
    bars_before = [0, *np.cumsum(windows.bars).tolist()]
    columns = windows.table.tolist()
    of_piece, of_first, of_end, _ = columns
    placed: list[list[int]] = [[], [], [], []]
    edges, num_windows = [0], len(windows)
    # The window to go on with; where it was cut, the bar where its rest begins, and its tokens.
    number, rest, rest_tokens = 0, 0, 0
    while number < num_windows:
        free, free_bars, start = max_tokens, max_bars, number
        if rest and rest_tokens <= free and of_end[number] - rest <= free_bars:
            _place(placed, of_piece[number], rest, of_end[number], rest_tokens)
            free, free_bars = free - rest_tokens, free_bars - (of_end[number] - rest)
            start, rest = number + 1, 0
        if not rest:
            number = bisect_right(tokens_before, tokens_before[start] + free, lo=start) - 1
            if bars_before[number] - bars_before[start] > free_bars:
                number = bisect_right(bars_before, bars_before[start] + free_bars, lo=start) - 1
            if number > start:
                for column, values in zip(placed, columns, strict=True):
                    column += values[start:number]
            if number == num_windows:
                break
            free -= tokens_before[number] - tokens_before[start]
            free_bars -= bars_before[number] - bars_before[start]
        first, end = rest or of_first[number], of_end[number]
        lines = bar_lines(index, of_piece[number])
        cut = min(end, lines.fit(first, free, free_bars))
        if cut > first:
            _place(placed, of_piece[number], first, cut, lines.tokens(first, cut))
            rest, rest_tokens = cut, lines.tokens(cut, end)
        elif len(placed[0]) == edges[-1]:
            raise bar_too_long(index, of_piece[number], first, max_tokens)
        edges.append(len(placed[0]))
    if len(placed[0]) > edges[-1]:
        edges.append(len(placed[0]))
    return Windows(np.array(placed, dtype=np.int64)), np.array(edges)


def _place(placed: list[list[int]], piece: int, first: int, last: int, tokens: int) -> None:
    placed[0].append(piece)
    placed[1].append(first)
    placed[2].append(last)
    placed[3].append(tokens)
