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
# Windows looked at for one whose bar lines fill a row.
_LOOK_AHEAD = 16
# Where none does: bars by which the cut of the best may come earlier, so that two of them do.
_BARS_EARLIER = 8


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


class _Cut(NamedTuple):
    """Bars that a row takes of a window.

    Args:
        number: of the window in its queue.
        bar: where they end (exclusive).
        tokens: what they take; 0 where no bar fits.
        rest: what the bars behind them take; 0 where there are none.
    """

    number: int
    bar: int
    tokens: int
    rest: int


class _Queue:
    """Windows that wait for a row, in plain lists: they are taken one at a time.

    Args:
        index: their pieces.
        windows: in their order.
        max_gap: tokens that a full row may have free.

    Attributes:
        columns: pieces, first bars, last bars and tokens.
    """

    def __init__(self, index: PieceIndex, windows: Windows, max_gap: int) -> None:
        self._index, self._max_gap = index, max_gap
        self.columns: list[list[int]] = windows.table.tolist()
        # What stands before each window, to find where a row is full without walking there.
        self.tokens_before = [0, *np.cumsum(windows.tokens).tolist()]
        self.bars_before = [0, *np.cumsum(windows.bars).tolist()]

    def cuts(self, start: int, free: int, free_bars: int) -> tuple[_Cut, ...]:
        """What fills the rest of a row: a cut, or two where one would leave a wide gap."""
        best = self._best_cut(start, free, free_bars)
        gap = free - best.tokens
        if not best.tokens:
            return ()
        if gap <= 2 * self._max_gap:
            return (best,)
        self._bring_forward(best.number, start)
        best = best._replace(number=start)
        first, end = self.columns[1][start], self.columns[2][start]
        lines = bar_lines(self._index, self.columns[0][start])
        chosen: tuple[_Cut, ...] = (best,)
        gap -= self._max_gap  # a second cut repeats a prefix: it has to win more than that takes
        for bar in range(best.bar - 1, max(first, best.bar - 1 - _BARS_EARLIER), -1):
            tokens = lines.tokens(first, bar)
            other = self._best_cut(start + 1, free - tokens, free_bars - (bar - first))
            left = free - tokens - other.tokens
            if other.tokens and left < gap:
                gap = left
                chosen = (_Cut(start, bar, tokens, lines.tokens(bar, end)), other)
                if gap <= self._max_gap:
                    break
        return chosen

    def take(
        self, number: int, bar: int, tokens: int, rest: int, place: int, taken: list[list[int]]
    ) -> int:
        """Add a cut to the columns of what is taken, and let its rest wait at `place`.

        Returns:
            The window that is next.
        """
        if number > place:
            self._bring_forward(number, place)
        pieces, firsts, ends, sizes = self.columns
        taken[0].append(pieces[place])
        taken[1].append(firsts[place])
        taken[2].append(bar)
        taken[3].append(tokens)
        if not rest:
            return place + 1
        firsts[place], sizes[place] = bar, rest
        # What stands before it is asked for no more.
        self.tokens_before[place] = self.tokens_before[place + 1] - rest
        self.bars_before[place] = self.bars_before[place + 1] - (ends[place] - bar)
        return place

    def _best_cut(self, start: int, free: int, free_bars: int) -> _Cut:
        """The first of a few windows that leaves no more than the gap, or the one with least."""
        pieces, firsts, ends, sizes = self.columns
        number, bar, most, most_lines = start, 0, 0, None
        for candidate in range(start, min(start + _LOOK_AHEAD, len(pieces))):
            first, end, tokens, lines = firsts[candidate], ends[candidate], sizes[candidate], None
            cut = end
            if tokens > free or end - first > free_bars:
                lines = bar_lines(self._index, pieces[candidate])
                cut = min(end, lines.fit(first, free, free_bars))
                tokens = lines.tokens(first, cut) if cut > first else 0
            if tokens > most:
                number, bar, most, most_lines = candidate, cut, tokens, lines
                if free - tokens <= self._max_gap:
                    break
        rest = most_lines.tokens(bar, ends[number]) if most_lines else 0
        return _Cut(number, bar, most, rest)

    def _bring_forward(self, number: int, place: int) -> None:
        """Let a window go before those from `place` on."""
        for column in self.columns:
            column[place : number + 1] = [column[number], *column[place:number]]
        for before in (self.tokens_before, self.bars_before):
            size = before[number + 1] - before[number]
            before[place + 1 : number + 1] = [other + size for other in before[place:number]]


def next_fit(
    index: PieceIndex, windows: Windows, max_tokens: int, max_bars: int
) -> tuple[Windows, np.ndarray]:
    """Fill rows in the order given; a window that does not fit is cut at a bar line and goes on.

    Where the bar lines of the window whose turn it is leave a gap, one of the next few goes first,
    or two of them share what is free. Every bar is in exactly one row.

    Returns:
        The windows row after row, and (R + 1,) where those of each row begin.

    Raises:
        BatchError: a single bar is longer than a row.
    """
    max_gap = max_tokens // _GAP_PART
    queue = _Queue(index, windows, max_gap)
    tokens_before, bars_before = queue.tokens_before, queue.bars_before
    pieces, firsts, ends, _ = queue.columns
    placed: list[list[int]] = [[], [], [], []]
    edges, number, num_windows = [0], 0, len(windows)
    while number < num_windows:
        start = number
        free, free_bars = tokens_before[start] + max_tokens, bars_before[start] + max_bars
        number = bisect_right(tokens_before, free, lo=start) - 1
        if bars_before[number] > free_bars:
            number = bisect_right(bars_before, free_bars, lo=start) - 1
        if number > start:
            for column, values in zip(placed, queue.columns, strict=True):
                column += values[start:number]
        free, free_bars = free - tokens_before[number], free_bars - bars_before[number]
        if number < num_windows and free > max_gap and free_bars:
            # Most often the window whose turn it is will do, so that this is what has to be quick.
            first, end, lines = firsts[number], ends[number], bar_lines(index, pieces[number])
            bar = min(end, lines.fit(first, free, free_bars))
            tokens = lines.tokens(first, bar)
            if free - tokens <= max_gap and bar > first:
                rest = lines.tokens(bar, end)
                number = queue.take(number, bar, tokens, rest, number, placed)
            else:
                for cut in queue.cuts(number, free, free_bars):
                    number = queue.take(*cut, number, placed)
        num_placed = len(placed[0])
        if num_placed == edges[-1]:
            raise bar_too_long(index, pieces[start], firsts[start], max_tokens)
        edges.append(num_placed)
    return Windows(np.array(placed, dtype=np.int64)), np.array(edges)
