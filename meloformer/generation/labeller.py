"""Where the tokens of growing pieces stand, without reading the whole of them again."""

import numpy as np

from meloformer.tokens.labels import HEADER, PREFIX, token_labels
from meloformer.tokens.vocabulary import INDEX_OF, KIND_OF, Kind, is_kind


class Labeller:
    """The labels of tokens that come one at a time; agrees with `token_labels` of the whole.

    Args:
        prefix_BN: ids that each row starts with, bars included or not.
    """

    def __init__(self, prefix_BN: np.ndarray) -> None:
        rows = [token_labels(prefix) for prefix in prefix_BN]
        # Rows bar, instrument, index, onset, as `DecodeCache.add` takes them.
        fields = [(one.bar, one.instrument, one.index, one.onset) for one in rows]
        self.prefix = np.stack([np.stack(row) for row in fields], axis=1).astype(np.int64)
        self.now = self.prefix[:, :, -1].copy()

    def advance(self, ids_B: np.ndarray) -> np.ndarray:
        """Labels (4, B) of one more token a row."""
        kind_B, index_of_B = KIND_OF[ids_B], INDEX_OF[ids_B]
        bar_B, instrument_B, index_B, onset_B = self.now
        is_bar_B = is_kind(kind_B, Kind.BAR)
        bar_B = bar_B + is_bar_B
        index_B = np.where(is_bar_B, 0, index_B + 1)
        is_instrument_B = is_kind(kind_B, Kind.INSTRUMENT) & (bar_B >= 0)
        # Behind the prefix these are EOS and FILL, which no instrument and no onset holds.
        is_header_B = is_bar_B | is_kind(kind_B, Kind.CONTROL)
        instrument_B = np.where(is_instrument_B, 1 + index_of_B, instrument_B)
        instrument_B = np.where(is_header_B, HEADER, instrument_B)
        instrument_B = np.where(bar_B < 0, PREFIX, instrument_B)
        onset_B = np.where(is_kind(kind_B, Kind.ONSET), index_of_B, onset_B)
        onset_B = np.where(is_header_B | is_instrument_B, 0, onset_B)
        self.now = np.stack([bar_B, instrument_B, index_B, onset_B])
        return self.now

    def restart(self, row: int, ids: np.ndarray) -> None:
        """Let a row stand where another sequence ends."""
        last = token_labels(ids)
        self.now = self.now.copy()
        self.now[:, row] = [
            field[-1] for field in (last.bar, last.instrument, last.index, last.onset)
        ]

    def keep(self, rows_R: np.ndarray) -> np.ndarray:
        """Go on with some of the rows, in this order; their labels (4, R)."""
        self.now = self.now[:, rows_R]
        return self.now
