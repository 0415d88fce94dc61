"""Pieces longer than a row of training: what is read of them, and when it begins anew.

A row of training holds so many tokens and bars. A piece that has come so far goes on from its last
half, which begins at a bar line and reads like a window of training: CONTINUE for BOS, the metre
and tempo of its first bar stated there, the bars that remain as its length.
"""

from array import array
from dataclasses import dataclass

import numpy as np

from meloformer.model.masks import num_summaries
from meloformer.tokens.vocabulary import KIND_OF, Kind
from meloformer.tokens.windows import bar_starts, cut_tail, window_length

# Half of a row: each token is computed about twice, once when it is drawn and once in a window.
_KEPT_SHARE = 2
_STATEMENTS = (Kind.BAR, Kind.METRE)


@dataclass(frozen=True)
class Slide:
    """A window to go on from.

    Args:
        ids: (T,) all tokens of the piece but the newest, from some bar on.
        num_skipped: bars fewer than were read before.
    """

    ids: np.ndarray
    num_skipped: int


class Context:
    """Which part of a growing piece is read.

    Args:
        max_tokens: of a row of training.
        num_bars: that the piece will have.
    """

    def __init__(self, max_tokens: int, num_bars: int) -> None:
        self._max_tokens, self._max_bars = max_tokens, num_summaries(max_tokens)
        self._num_bars = num_bars
        self.first_bar = 0
        # Tokens of the piece that are not read: those of a window's prefix and statements count.
        self._num_left_out = 0
        self._num_begun = 0

    def slide(self, ids: array) -> Slide | None:
        """The window to go on from; None while the newest token still has its place.

        Called with every token after the first ones, which stand in the prefix.

        Args:
            ids: the piece so far; the newest token is not yet read.
        """
        self._num_begun += int(KIND_OF[ids[-1]] == Kind.BAR)
        num_read = len(ids) - self._num_left_out
        num_bars = self._num_begun - self.first_bar
        if num_read <= self._max_tokens and num_bars <= self._max_bars:
            return None
        read = np.array(ids[:-1], dtype=np.uint16)
        first = self._next_first(read)
        if first <= self.first_bar:  # one bar is longer than that: it is read to its end
            return None
        window = cut_tail(read, first, self._num_bars - first)
        num_skipped = first - self.first_bar
        self.first_bar, self._num_left_out = first, len(read) - len(window)
        return Slide(window, num_skipped)

    def _next_first(self, read: np.ndarray) -> int:
        """The earliest bar whose window is half a row at most, or the last that can begin one."""
        starts = bar_starts(read)
        begun = len(starts) - 1
        # A bar that has not stated its metre and tempo yet cannot begin a window.
        last = begun - 1 - int(KIND_OF[read[-1]] in _STATEMENTS)
        firsts = np.arange(1, last + 1)
        if not len(firsts):
            return 0
        lengths = window_length(int(starts[0]), starts, firsts, np.full_like(firsts, begun))
        fits = (lengths <= self._max_tokens // _KEPT_SHARE) & (
            begun - firsts <= self._max_bars // _KEPT_SHARE
        )
        return int(firsts[fits][0]) if fits.any() else last
