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
# A row with less free than this part of it is full: to fill it would cut crumbs off pieces.
_GAP_PART = 128
# Windows looked at for one that fills a row: the best of 16 leaves a tenth of what the first does.
_LOOK_AHEAD = 16


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


class _Queue:
    """Windows that wait for a row, in plain lists: they are taken one at a time.

    Args:
        windows: in their order.

    Attributes:
        columns: pieces, first bars, last bars and tokens.
    """

    def __init__(self, windows: Windows) -> None:
        self.columns: list[list[int]] = windows.table.tolist()
        # What stands before each window, to find where a row is full without walking there.
        self._tokens = [0, *np.cumsum(windows.tokens).tolist()]
        self._bars = [0, *np.cumsum(windows.bars).tolist()]

    def fill(self, start: int, max_tokens: int, max_bars: int) -> tuple[int, int, int]:
        """Where a row that begins with `start` is full (exclusive), and what it has free there."""
        end_tokens, end_bars = self._tokens[start] + max_tokens, self._bars[start] + max_bars
        end = bisect_right(self._tokens, end_tokens, lo=start) - 1
        if self._bars[end] > end_bars:
            end = bisect_right(self._bars, end_bars, lo=start) - 1
        return end, end_tokens - self._tokens[end], end_bars - self._bars[end]

    def best_cut(
        self, index: PieceIndex, number: int, free: int, free_bars: int, max_gap: int
    ) -> tuple[int, int, int, int]:
        """The window from `number` on that leaves no more than the gap, or of a few the least.

        Returns:
            Its number, the bar where it is cut, its tokens up to there, 0 if no bar fits, and
            those of its rest, 0 if there is none.
        """
        pieces, firsts, ends, sizes = self.columns
        chosen, best_cut, most, best_lines = number, firsts[number], 0, None
        for candidate in range(number, min(number + _LOOK_AHEAD, len(pieces))):
            first, end, tokens, lines = firsts[candidate], ends[candidate], sizes[candidate], None
            cut = end
            if tokens > free or end - first > free_bars:
                lines = bar_lines(index, pieces[candidate])
                cut = min(end, lines.fit(first, free, free_bars))
                tokens = lines.tokens(first, cut) if cut > first else 0
            if tokens > most:
                chosen, best_cut, most, best_lines = candidate, cut, tokens, lines
                if free - tokens <= max_gap:
                    break
        rest = best_lines.tokens(best_cut, ends[chosen]) if best_lines else 0
        return chosen, best_cut, most, rest

    def bring_forward(self, number: int, place: int) -> None:
        """Let a window go before those from `place` on."""
        for column in self.columns:
            column[place : number + 1] = [column[number], *column[place:number]]
        for before in (self._tokens, self._bars):
            size = before[number + 1] - before[number]
            before[place + 1 : number + 1] = [other + size for other in before[place:number]]

    def shorten(self, number: int, first_bar: int, tokens: int) -> None:
        """Keep of a window the bars from `first_bar` on; those before it are done with."""
        _, firsts, ends, sizes = self.columns
        firsts[number], sizes[number] = first_bar, tokens
        self._tokens[number] = self._tokens[number + 1] - tokens
        self._bars[number] = self._bars[number + 1] - (ends[number] - first_bar)


def next_fit(
    index: PieceIndex, windows: Windows, max_tokens: int, max_bars: int
) -> tuple[Windows, np.ndarray]:
    """Fill rows in the order given; a window that does not fit is cut at a bar line and goes on.

    Where the bar lines of the window whose turn it is leave a gap, one of the next few that fills
    the row better goes first. Every bar is in exactly one row.

    Returns:
        The windows row after row, and (R + 1,) where those of each row begin.

    Raises:
        BatchError: a single bar is longer than a row.
    """
    queue, max_gap = _Queue(windows), max_tokens // _GAP_PART
    pieces, firsts, _, _ = queue.columns
    placed: list[list[int]] = [[], [], [], []]
    edges, number, num_windows = [0], 0, len(windows)
    while number < num_windows:
        start = number
        number, free, free_bars = queue.fill(start, max_tokens, max_bars)
        if number > start:
            for column, values in zip(placed, queue.columns, strict=True):
                column += values[start:number]
        if number < num_windows and free > max_gap and free_bars:
            chosen, cut, tokens, rest = queue.best_cut(index, number, free, free_bars, max_gap)
            if tokens:
                if chosen > number:
                    queue.bring_forward(chosen, number)
                _place(placed, pieces[number], firsts[number], cut, tokens)
                if rest:
                    queue.shorten(number, cut, rest)
                else:
                    number += 1
            elif number == start:
                raise bar_too_long(index, pieces[number], firsts[number], max_tokens)
        edges.append(len(placed[0]))
    return Windows(np.array(placed, dtype=np.int64)), np.array(edges)


def _place(placed: list[list[int]], piece: int, first: int, last: int, tokens: int) -> None:
    placed[0].append(piece)
    placed[1].append(first)
    placed[2].append(last)
    placed[3].append(tokens)
