"""One row of a batch: a piece while it is sampled."""

from array import array

import numpy as np
import torch

from meloformer.generation.piece_mask import PieceMask
from meloformer.generation.sliding import Context
from meloformer.tokens.vocabulary import KIND_OF, PAD, VOCAB_SIZE, Kind, is_kind
from meloformer.tokens.windows import bar_starts

_DRAWN_AHEAD = 64


class Row:
    """A piece while it is sampled.

    Args:
        prefix: (T,) int64, what it begins with.
        mask: what may follow.
        context: how much of it is read, if it is endless.
        seed: of its draws.
    """

    def __init__(self, prefix: np.ndarray, mask: PieceMask, context: Context, seed: int) -> None:
        self.prefix = prefix
        self.ids = array("H")  # an endless piece is long
        self.context = context
        # Of all tokens behind the prefix, where somebody adds them up.
        self.nats = 0.0
        self._generator = torch.Generator().manual_seed(seed)
        self._drawn: list[float] = []
        self._mask = mask

    @property
    def is_told(self) -> bool:
        """Whether the next token stands in the prefix."""
        return len(self.ids) < len(self.prefix)

    @property
    def is_finished(self) -> bool:
        return self._mask.is_finished

    def allowed(self) -> np.ndarray:
        """(V,) bool: what may be drawn; PAD alone for a row that draws nothing."""
        if not (self.is_told or self.is_finished):
            return self._mask.allowed()
        only_pad = np.zeros(VOCAB_SIZE, dtype=bool)
        only_pad[PAD] = True
        return only_pad

    def draw(self) -> float:
        """A number from [0, 1), if one is needed."""
        if self.is_told or self.is_finished:
            return 0.0
        if not self._drawn:
            # The same numbers as one by one, in a fraction of the calls; the next one stands last.
            ahead = torch.rand(_DRAWN_AHEAD, generator=self._generator)
            self._drawn = ahead.tolist()[::-1]
        return self._drawn.pop()

    def take(self, token_id: int) -> int:
        """Take what was drawn, unless the prefix says what is next; the token."""
        if self.is_told:
            token_id = int(self.prefix[len(self.ids)])
        else:
            self._mask.advance(token_id)
        self.ids.append(token_id)
        return token_id

    def piece(self) -> np.ndarray:
        """The sequence, without a bar that it breaks off in."""
        whole = np.array(self.ids, dtype=np.uint16)
        if self.is_finished:
            return whole
        starts = bar_starts(whole)
        return whole[: starts[-2]] if len(starts) > 1 else self.prefix.astype(np.uint16)

    def nats_per_note(self) -> float:
        """How unlikely the model finds the piece; all that it says, shared out over its notes."""
        return self.nats / int(is_kind(KIND_OF[np.array(self.ids)], Kind.PITCH).sum())
