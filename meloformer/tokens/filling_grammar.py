"""The grammar of filled windows (tokens/filling.py): the ordinary one, but for FILL and the order.

Without its FILLs and the instruments named behind the first, a filled window is an ordinary
sequence, so this is the same state machine with a few tokens more. Two things differ: the
instruments that stand last in a bar ascend anew behind the others, and a hole may end with an
empty bar.
"""

from collections.abc import Iterable

import numpy as np

from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.vocabulary import (
    BLOCK_SIZES,
    BOS,
    CONTINUE,
    EOS,
    FILL,
    INDEX_OF,
    OFFSET,
    VOCAB_SIZE,
    Kind,
)

# What has been read, by the number of FILLs: nothing, the bars behind the hole (or all bars, where
# instruments alone stand last), those before it, and the hole.
_NOTHING, _BEHIND, _BEFORE, _HOLE = range(4)

_NUM_INSTRUMENTS = BLOCK_SIZES[Kind.INSTRUMENT]
_INSTRUMENTS = slice(OFFSET[Kind.INSTRUMENT], OFFSET[Kind.INSTRUMENT] + _NUM_INSTRUMENTS)


class FilledState(GrammarState):
    """What may come next in a filled window; see `GrammarState`.

    It takes no wishes: whoever fills a hole knows its bars, and gives what they hold already.

    Args:
        prefix: ids to start from: the beginning of any filled window.
    """

    def __init__(self, prefix: Iterable[int] = ()) -> None:
        self._part = _NOTHING
        self._is_named = False  # the instruments that stand last: all of them named
        self._stands_last = np.zeros(_NUM_INSTRUMENTS, dtype=bool)
        self._follows_fill = False
        super().__init__(prefix)

    def _next(self) -> np.ndarray:
        """(V,) bool; none after the end."""
        mask = np.zeros(VOCAB_SIZE, dtype=bool)
        if self.is_finished:
            return mask
        if self._part == _NOTHING:
            mask[FILL] = True
        elif not self._is_named:
            mask[BOS] = mask[CONTINUE] = True
            mask[_INSTRUMENTS][self._instrument + 1 :] = True
        elif self._follows_fill:
            mask[FILL] = self._part == _BEFORE
            self._allow(mask, Kind.BAR)
        else:
            mask = super()._next()
            if self.num_bars and self._due() is None:
                mask[FILL] = True
                # In the hole an empty bar may be the last one; before it no end may come.
                mask[EOS] = self._part == _HOLE or (mask[EOS] and not self._needs_hole)
        return mask

    def advance(self, token_id: int) -> None:
        """Take one token.

        Raises:
            TokenError: it is not allowed here.
        """
        super().advance(token_id)
        self._follows_fill = token_id == FILL and self._part >= _BEHIND
        if token_id == FILL:
            self.is_finished = self._part == _HOLE
            self._part = min(self._part + 1, _HOLE)
        elif not self._is_named:
            if token_id in (BOS, CONTINUE):
                self._is_named, self._instrument = True, -1
            else:
                self._stands_last[INDEX_OF[token_id]] = True

    @property
    def is_complete(self) -> bool:
        """Whether the window so far decodes: a hole is closed, instruments end with their bar."""
        if self.is_finished:
            return True
        ends_with_bar = self.num_bars > 0 and self._due() is None
        return self._part == _BEHIND and not self._needs_hole and ends_with_bar

    @property
    def _needs_hole(self) -> bool:
        """Whether a hole is still to come; instruments alone need none."""
        if self._part == _BEHIND:
            return not self._stands_last.any()
        return self._part < _HOLE

    def _allow(self, mask: np.ndarray, kind: Kind) -> None:
        """Mark the tokens of one kind that its own order and the wishes permit."""
        if kind is not Kind.INSTRUMENT or self.num_bars == 0:
            super()._allow(mask, kind)
            return
        index = np.arange(_NUM_INSTRUMENTS)
        comes_later = index > self._instrument
        if self._instrument >= 0 and self._stands_last[self._instrument]:
            comes_later &= self._stands_last
        else:
            comes_later |= self._stands_last
        mask[_INSTRUMENTS] = comes_later


def grammar_of(prefix: Iterable[int]) -> GrammarState:
    """The state machine that fits a beginning: of a filled window, or of an ordinary one."""
    ids = [int(token_id) for token_id in prefix]
    return (FilledState if ids[:1] == [FILL] else GrammarState)(ids)
