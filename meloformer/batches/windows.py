"""Windows: runs of whole bars of one piece, the unit that the plan moves about.

Nothing is read here: lengths follow from the index of the shards, as upper bounds on the tokens
that the collator will produce (attributes still in, header of a first bar restated).
"""

from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from meloformer.batches.piece_index import PieceIndex
from meloformer.errors import BatchError
from meloformer.tokens.windows import window_length


class Window(NamedTuple):
    """Bars `first_bar`..`last_bar - 1` of a piece."""

    piece: int
    first_bar: int
    last_bar: int


class SizedWindow(NamedTuple):
    """A window and the tokens that it takes from a row, an upper bound."""

    piece: int
    first_bar: int
    last_bar: int
    tokens: int

    @property
    def window(self) -> Window:
        return Window(self.piece, self.first_bar, self.last_bar)

    @property
    def bars(self) -> int:
        return self.last_bar - self.first_bar


@dataclass(frozen=True, eq=False)
class Windows:
    """N windows as a table: a group of shards holds too many for an object each.

    Args:
        table: (4, N) int64: piece, first bar, last bar (exclusive), tokens.
    """

    table: np.ndarray

    @classmethod
    def of(cls, windows: Iterable[SizedWindow]) -> "Windows":
        """The table of some windows."""
        return cls(np.array(list(windows), dtype=np.int64).reshape(-1, 4).T)

    @classmethod
    def whole(cls, pieces: np.ndarray, tokens: np.ndarray, bars: np.ndarray) -> "Windows":
        """One window per piece, in the order given."""
        return cls(np.stack([pieces, np.zeros_like(pieces), bars, tokens]).astype(np.int64))

    @classmethod
    def joined(cls, *parts: "Windows") -> "Windows":
        """All windows of some tables, in order."""
        return cls(np.concatenate([cls.of(()).table, *(part.table for part in parts)], axis=1))

    def __len__(self) -> int:
        return self.table.shape[1]

    def __iter__(self) -> Iterator[SizedWindow]:
        return (SizedWindow(*window) for window in self.table.T.tolist())

    def __getitem__(self, chosen: np.ndarray | slice) -> "Windows":
        return Windows(self.table[:, chosen])

    @property
    def piece(self) -> np.ndarray:
        """(N,) piece of each."""
        return self.table[0]

    @property
    def tokens(self) -> np.ndarray:
        """(N,) upper bounds on the tokens of each."""
        return self.table[3]

    @property
    def bars(self) -> np.ndarray:
        """(N,) bars of each."""
        return self.table[2] - self.table[1]


class BarLines(NamedTuple):
    """Bar lines of one piece, for a planner that asks once per cut.

    Args:
        starts: token offset of each bar, the first one the length of the prefix, then the end
            without EOS.
    """

    starts: np.ndarray

    @property
    def num_bars(self) -> int:
        return len(self.starts) - 1

    def tokens(self, first: int, last: int) -> int:
        """Most tokens of bars first..last - 1: `tokens.windows.window_length` in plain integers.

        >>> BarLines(np.array([10, 30, 40])).tokens(1, 2)
        23
        """
        start_of = self.starts.item
        length: int = start_of(0) + start_of(last) - start_of(first)
        return length + (2 if first > 0 else 0) + (last == len(self.starts) - 1)

    def fit(self, first: int, max_tokens: int, max_bars: int) -> int:
        """Where the longest window from `first` on ends (exclusive); `first` if no bar fits.

        >>> BarLines(np.array([3, 10, 20, 30])).fit(0, max_tokens=24, max_bars=9)
        2
        """
        starts, start_of = self.starts, self.starts.item
        end = start_of(first) + max_tokens - start_of(0) - (2 if first else 0)
        # Few entries: this takes a third of the time of a call of numpy.
        last = bisect_right(starts, end, first) - 1
        if last == len(starts) - 1 and start_of(last) == end:
            last -= 1  # EOS, which only the last bar brings, is the one token too many
        if last > first + max_bars:
            return first + max_bars
        return last if last > first else first

    def window(self, piece: int, first: int, last: int) -> SizedWindow:
        """Bars first..last - 1, with what they take."""
        return SizedWindow(piece, first, last, self.tokens(first, last))


def bar_lines(index: PieceIndex, piece: int) -> BarLines:
    """Bar lines of a piece of the index."""
    return BarLines(index.bar_starts(piece))


def whole_pieces(index: PieceIndex, shard: int, rows: np.ndarray | None = None) -> Windows:
    """One window per piece of a shard; only of the given rows, where there are any."""
    tokens, bars = index.lengths(shard)
    pieces = np.arange(index.pieces_of_shard(shard).start, index.pieces_of_shard(shard).stop)
    windows = Windows.whole(pieces, tokens, bars)
    return windows if rows is None else windows[rows]


def cut_long_pieces(index: PieceIndex, windows: Windows, max_tokens: int, max_bars: int) -> Windows:
    """Pass windows that fit a row; cut the others at bar lines into windows as long as fit.

    Every bar is in exactly one window, and the order stays.

    Raises:
        BatchError: a single bar is longer than a row.
    """
    parts: list[Windows] = []
    done = 0
    for number in np.flatnonzero(
        (windows.tokens > max_tokens) | (windows.bars > max_bars)
    ).tolist():
        piece, first, end, _ = windows.table[:, number].tolist()
        lines, cut = bar_lines(index, piece), []
        while first < end:
            last = min(end, lines.fit(first, max_tokens, max_bars))
            if last == first:
                raise bar_too_long(index, piece, first, max_tokens)
            cut.append(lines.window(piece, first, last))
            first = last
        parts += [windows[done:number], Windows.of(cut)]
        done = number + 1
    return Windows.joined(*parts, windows[done:]) if parts else windows


def bar_too_long(index: PieceIndex, piece: int, bar: int, max_tokens: int) -> BatchError:
    """The refusal of a bar that no row can hold."""
    needed = bar_lines(index, piece).tokens(bar, bar + 1)
    return BatchError(
        f"{index.describe(piece)}: bar {bar + 1} takes {needed} tokens with its prefix, a row "
        f"{max_tokens}; raise --max_seq_len to at least {needed}, or build the shards again with "
        f"--max_bar_tokens {max_tokens}, which leaves such pieces out"
    )


def check_bars_fit(index: PieceIndex, max_tokens: int) -> None:
    """Look at the longest bar of every shard before the first step, so that none stops a run later.

    Raises:
        BatchError: a single bar is longer than a row; the longest one is named.
    """
    worst, worst_tokens = None, max_tokens
    # What is known of a shard is a bound: the few that pass it are looked at piece by piece.
    for shard in (n for n in range(index.num_shards) if index.longest_bar(n) > max_tokens):
        windows = whole_pieces(index, shard)
        for piece in windows.piece[windows.tokens > max_tokens].tolist():
            starts = index.bar_starts(piece)
            bars = np.arange(len(starts) - 1)
            tokens = np.asarray(window_length(int(starts[0]), starts, bars, bars + 1))
            if tokens.max() > worst_tokens:
                worst, worst_tokens = (piece, int(tokens.argmax())), int(tokens.max())
    if worst is not None:
        raise bar_too_long(index, *worst, max_tokens)
