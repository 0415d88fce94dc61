"""What may be drawn next: what the grammar and the wishes allow, and no bar a second time."""

from collections import deque
from collections.abc import Sequence

import numpy as np

from meloformer.midi.grid import MAX_BAR_STEPS
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.vocabulary import BLOCK_SIZES, EOS, INDEX_OF, KIND_OF, OFFSET, Kind
from meloformer.tokens.wishes import Wishes

_BARS = slice(OFFSET[Kind.BAR], OFFSET[Kind.BAR] + BLOCK_SIZES[Kind.BAR])


class PieceMask:
    """The state of one piece that is being sampled.

    A bar is the same as another where instrument, onset and pitch of every note are. Such a bar
    may not end yet: more must come. Where nothing more may, the grammar goes first, and it ends.

    Args:
        prefix: ids to start from.
        wishes: kept exactly.
        no_repeat_bars: a bar shall be none of so many before it; bars without notes may repeat.
    """

    def __init__(self, prefix: Sequence[int], wishes: Wishes, no_repeat_bars: int = 0) -> None:
        self._grammar = GrammarState(prefix, wishes)
        self._is_watching = no_repeat_bars > 0
        self._before: deque[list[int]] = deque(maxlen=no_repeat_bars)
        self._notes: list[int] = []
        self._instrument = self._onset = 0
        for token_id in prefix:
            self._watch(token_id)

    @property
    def is_finished(self) -> bool:
        """Whether EOS has come."""
        return self._grammar.is_finished

    def allowed(self) -> np.ndarray:
        """(V,) bool, the caller's own; none after EOS."""
        mask = self._grammar.allowed()
        if self._notes and self._notes in self._before:
            going_on = mask.copy()
            going_on[_BARS] = going_on[EOS] = False
            if going_on.any():
                return going_on
        return mask

    def advance(self, token_id: int) -> None:
        """Take one token.

        Raises:
            TokenError: the grammar does not allow it here.
        """
        self._grammar.advance(token_id)
        self._watch(token_id)

    def _watch(self, token_id: int) -> None:
        if not self._is_watching:
            return
        kind, index = KIND_OF[token_id], int(INDEX_OF[token_id])
        if kind == Kind.PITCH:
            voice = self._instrument * MAX_BAR_STEPS + self._onset
            self._notes.append(voice * BLOCK_SIZES[Kind.PITCH] + index)
        elif kind == Kind.ONSET:
            self._onset = index
        elif kind == Kind.INSTRUMENT:
            self._instrument = index
        elif kind == Kind.BAR:
            self._before.append(self._notes)
            self._notes = []
