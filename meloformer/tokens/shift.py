"""Shifts of tokens inside their tables: the same music faster or slower, louder or softer."""

import numpy as np

from meloformer.errors import TokenError
from meloformer.tokens.vocabulary import BLOCK_SIZES, INDEX_OF, KIND_OF, Kind, is_kind


def shift_tempo(ids: np.ndarray, bins: int) -> np.ndarray:
    """Move every tempo, of the prefix and of the bars, by bins of the tempo table.

    Args:
        ids: (T,) a piece or a window.
        bins: up, or down where negative; `tempo_shifts` says which ones fit.

    Raises:
        TokenError: a tempo would leave the table.

    >>> from meloformer.tokens.vocabulary import BOS, token_id, token_name
    >>> token_name(shift_tempo(np.array([BOS, token_id(Kind.TEMPO, 40)]), 16)[1])
    'TEMPO:240'
    """
    return _shift(ids, Kind.TEMPO, bins)


def tempo_shifts(ids: np.ndarray) -> tuple[int, int]:
    """Lowest and highest number of bins that keep every tempo inside its table."""
    return _shifts(ids, Kind.TEMPO)


def shift_velocity(ids: np.ndarray, bins: int) -> np.ndarray:
    """Move every velocity, drums included, by bins of the velocity table.

    Args:
        ids: (T,) a piece or a window.
        bins: up, or down where negative; `velocity_shifts` says which ones fit.

    Raises:
        TokenError: a velocity would leave the table.
    """
    return _shift(ids, Kind.VELOCITY, bins)


def velocity_shifts(ids: np.ndarray) -> tuple[int, int]:
    """Lowest and highest number of bins that keep every velocity inside its table."""
    return _shifts(ids, Kind.VELOCITY)


def _shift(ids: np.ndarray, kind: Kind, bins: int) -> np.ndarray:
    lowest, highest = _shifts(ids, kind)
    if not lowest <= bins <= highest:
        raise TokenError(
            f"a shift by {bins} bins takes a {kind.name.lower()} out of its table; allowed for "
            f"this piece: {lowest}..{highest}"
        )
    moved = is_kind(KIND_OF.take(ids), kind)
    return np.where(moved, ids.astype(np.int64) + bins, ids).astype(ids.dtype)


def _shifts(ids: np.ndarray, kind: Kind) -> tuple[int, int]:
    """Lowest and highest shift; without a token of the kind, the whole table either way."""
    index = INDEX_OF[ids[is_kind(KIND_OF.take(ids), kind)]]
    top = BLOCK_SIZES[kind] - 1
    return (-int(index.min()), top - int(index.max())) if len(index) else (-top, top)
