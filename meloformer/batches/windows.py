"""Windows: runs of whole bars of one piece, the unit that the plan moves about.

Nothing is read here: lengths follow from the index of the shards, as upper bounds on the tokens
that the collator will produce (attributes still in, header of a first bar restated).
"""

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from meloformer.errors import BatchError
from meloformer.tokens.windows import window_length


class Window(NamedTuple):
    """Bars `first_bar`..`last_bar - 1` of a piece."""

    piece: int
    first_bar: int
    last_bar: int


class SizedWindow(NamedTuple):
    """A window and what it takes from a row: tokens (an upper bound) and bars."""

    window: Window
    tokens: int
    bars: int


class PieceIndex(Protocol):
    """What batches ask of one split of a shard folder."""

    @property
    def num_tokens(self) -> np.ndarray:
        """(P,) tokens of each whole piece, full prefix and EOS included."""

    @property
    def num_bars(self) -> np.ndarray:
        """(P,) bars of each piece, at least 1."""

    @property
    def prefix_length(self) -> np.ndarray:
        """(P,) tokens before the first bar."""

    @property
    def num_shards(self) -> int:
        """Shards of the split."""

    def bar_starts(self, piece: int) -> np.ndarray:
        """(num_bars + 1,) token offset of each bar; the last entry is the end without EOS."""

    def pieces_of_shard(self, shard: int) -> range:
        """Pieces that a shard holds, consecutive."""

    def key(self, piece: int) -> str:
        """Name of the piece, for messages."""

    def read(self, piece: int) -> np.ndarray:
        """uint16 ids of the whole piece."""


@dataclass(frozen=True, slots=True)
class BarLines:
    """Bar lines of one piece as plain integers, for a planner that asks once per window.

    Args:
        prefix_length: tokens before the first bar.
        starts: token offset of each bar, then the end without EOS.
    """

    prefix_length: int
    starts: list[int]

    @classmethod
    def of(cls, index: PieceIndex, piece: int) -> "BarLines":
        """Bar lines of a piece of the index."""
        return cls(int(index.prefix_length[piece]), index.bar_starts(piece).tolist())

    def tokens(self, first: int, last: int) -> int:
        """Most tokens of bars first..last - 1: `tokens.windows.window_length` in plain integers.

        >>> BarLines(10, [10, 30, 40]).tokens(1, 2)
        23
        """
        restated = 2 if first > 0 else 0
        has_eos = last == len(self.starts) - 1
        return self.prefix_length + self.starts[last] - self.starts[first] + restated + has_eos

    def fit(self, first: int, max_tokens: int, max_bars: int) -> int:
        """Where the longest window from `first` on ends (exclusive); `first` if no bar fits.

        >>> BarLines(3, [3, 10, 20, 30]).fit(0, max_tokens=24, max_bars=9)
        2
        """
        overhead = self.prefix_length + (2 if first > 0 else 0)
        last = bisect_right(self.starts, self.starts[first] + max_tokens - overhead) - 1
        last = max(first, min(last, first + max_bars))
        # EOS, which only the last bar brings, may be the one token too many.
        if last > first and self.tokens(first, last) > max_tokens:
            last -= 1
        return last

    def window(self, piece: int, first: int, last: int) -> "SizedWindow":
        """Bars first..last - 1, with what they take."""
        return SizedWindow(Window(piece, first, last), self.tokens(first, last), last - first)


def whole_pieces(index: PieceIndex, pieces: np.ndarray) -> list[SizedWindow]:
    """One window per piece, in the order given."""
    bars = index.num_bars[pieces].tolist()
    tokens = index.num_tokens[pieces].tolist()
    return [
        SizedWindow(Window(piece, 0, num_bars), num_tokens, num_bars)
        for piece, num_tokens, num_bars in zip(pieces.tolist(), tokens, bars, strict=True)
    ]


def cut_long_pieces(
    index: PieceIndex, windows: list[SizedWindow], max_tokens: int, max_bars: int
) -> Iterator[SizedWindow]:
    """Pass windows that fit a row; cut the others at bar lines into windows as long as fit.

    Every bar is in exactly one window.

    Raises:
        BatchError: a single bar is longer than a row.
    """
    for sized in windows:
        if sized.tokens <= max_tokens and sized.bars <= max_bars:
            yield sized
            continue
        piece, first, end = sized.window
        bar_lines = BarLines.of(index, piece)
        while first < end:
            last = min(end, bar_lines.fit(first, max_tokens, max_bars))
            if last == first:
                raise bar_too_long(index, piece, first, max_tokens)
            yield bar_lines.window(piece, first, last)
            first = last


def bar_too_long(index: PieceIndex, piece: int, bar: int, max_tokens: int) -> BatchError:
    """The refusal of a bar that no row can hold."""
    needed = BarLines.of(index, piece).tokens(bar, bar + 1)
    return BatchError(
        f"piece {index.key(piece)}, bar {bar}: {needed} tokens with its prefix, "
        f"a row takes {max_tokens}; raise --max_seq_len to at least {needed}, "
        "or build the shards without this piece"
    )


def check_bars_fit(index: PieceIndex, max_tokens: int) -> None:
    """Look at every piece longer than a row before the first step, so that none stops a run later.

    Raises:
        BatchError: a single bar is longer than a row; the longest one is named.
    """
    worst, worst_tokens = None, max_tokens
    for piece in np.flatnonzero(index.num_tokens > max_tokens).tolist():
        starts = index.bar_starts(piece)
        bars = np.arange(len(starts) - 1)
        tokens = np.asarray(window_length(int(index.prefix_length[piece]), starts, bars, bars + 1))
        if tokens.max() > worst_tokens:
            worst, worst_tokens = (piece, int(tokens.argmax())), int(tokens.max())
    if worst is not None:
        raise bar_too_long(index, *worst, max_tokens)
