"""Bars that no row of a training run may be able to hold: measured in tokens, so known last."""

import numpy as np

from meloformer.errors import MidiError
from meloformer.shards.manifest import ShardSettings

# Metre, tempo and EOS, which a window of one bar may need on top.
_RESTATED = 3


def longest_bar(bar_starts: np.ndarray) -> int:
    """Most tokens that a window of one bar of a piece takes, its prefix included; a bound.

    Args:
        bar_starts: (num_bars + 1,) of a whole piece, see `meloformer.tokens.windows.bar_starts`.

    >>> longest_bar(np.array([10, 30, 35]))
    33
    """
    return int(bar_starts[0] + np.diff(bar_starts).max()) + _RESTATED


def longest_bars(bar_starts: np.ndarray, num_bars: np.ndarray) -> np.ndarray:
    """`longest_bar` of each of many pieces.

    Args:
        bar_starts: (sum(num_bars + 1),) of one piece behind the other, as in a shard's index.
        num_bars: (P,) bars of each.

    Returns:
        (P,) int64.

    >>> longest_bars(np.array([10, 30, 35, 5, 9]), np.array([2, 1])).tolist()
    [33, 12]
    """
    ends = np.cumsum(num_bars.astype(np.int64) + 1) - 1
    first = ends - num_bars
    bars = np.diff(bar_starts.astype(np.int64), append=0)
    bars[ends] = 0  # from one piece to the next
    return bar_starts[first] + np.maximum.reduceat(bars, first) + _RESTATED


def check_bar_tokens(bar_starts: np.ndarray, settings: ShardSettings) -> None:
    """Refuse a piece with a bar that takes too much of a row: training could not go past it.

    Args:
        bar_starts: (num_bars + 1,) of the whole piece.
        settings: settings of the build.

    Raises:
        MidiError: bar_too_long.
    """
    most = settings.max_bar_tokens
    if most and (found := longest_bar(bar_starts)) > most:
        bar = int(np.diff(bar_starts).argmax()) + 1
        raise MidiError(
            "bar_too_long",
            f"bar {bar} takes {found} tokens with its prefix; allowed up to {most} "
            "(--max_bar_tokens)",
        )
