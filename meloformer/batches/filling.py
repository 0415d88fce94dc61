"""The draw of filled windows: what stands last in which windows, see tokens/filling.py.

A filled window is a few tokens longer than the window. The plan knows nothing of it: what it needs
it takes from the attributes, first from those that the bars around a hole tell anyway, and a window
that has no room left stays as it is.
"""

from dataclasses import dataclass

import numpy as np

from meloformer.errors import ConfigError
from meloformer.tokens.attributes import ATTRIBUTE_KINDS, drop_attributes, prefix_length
from meloformer.tokens.filling import Hole, fill
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import KIND_OF, Kind, is_kind
from meloformer.tokens.windows import bar_starts

# Of the filled windows, those that have a hole of bars, of instruments, or of both.
_SHARE_OF_BARS, _SHARE_OF_INSTRUMENTS = 0.5, 0.25
# Instruments that stand last together: one, two, or any number that leaves one to be read.
_SHARE_OF_ONE, _SHARE_OF_TWO = 0.6, 0.2
_LONGEST_HOLE_BARS = 32
# What makes room first.
_EXPENDABLE = (
    Kind.METRE,
    Kind.TEMPO,
    Kind.KEY,
    Kind.DENSITY,
    Kind.LENGTH,
    Kind.INSTRUMENT,
)


@dataclass(frozen=True, kw_only=True)
class Filling:
    """How often a window is filled.

    Args:
        rate: share of the windows.
    """

    rate: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.rate <= 1:
            raise ConfigError(f"--fill_rate {self.rate:g}: allowed: 0 to 1, a share of windows")

    def filled(self, ids: np.ndarray, max_tokens: int, random: np.random.Generator) -> np.ndarray:
        """A window as it was, or filled.

        Args:
            ids: (T,) the window in bar order.
            max_tokens: tokens that the plan keeps free for it, T or more.
            random: of this window alone.
        """
        if random.random() >= self.rate:
            return ids
        hole = draw_hole(ids, random)
        if hole is None:
            return ids
        filled = fill(ids, hole)
        missing = len(filled) - max_tokens
        if missing <= 0:
            return filled
        shorter = _without_attributes(ids, missing)
        return ids if shorter is None else fill(shorter, hole)


NO_FILLING = Filling()


def draw_hole(ids: np.ndarray, random: np.random.Generator) -> Hole | None:
    """What stands last in a window; None for one bar of one instrument, which has no other.

    Short holes are as likely as long ones: the logarithm of the bars is uniform.
    """
    starts = bar_starts(ids)
    num_bars = len(starts) - 1
    playing = np.unique(token_labels(ids).instrument)
    playing = playing[playing > 0] - 1
    which, long, place = random.random(3)
    has_bars = num_bars > 1 and (which >= _SHARE_OF_INSTRUMENTS or len(playing) < 2)
    has_instruments = len(playing) > 1 and (which < 1 - _SHARE_OF_BARS or not has_bars)
    first = last = 0
    if has_bars:
        longest = min(num_bars - 1, _LONGEST_HOLE_BARS)
        num_last = int((longest + 1) ** long)
        first = int(place * (num_bars - num_last))
        last = first + num_last
    chosen: list[int] = []
    if has_instruments:
        chosen = random.permutation(playing)[: _draw_count(len(playing), random)].tolist()
    if not (has_bars or has_instruments):
        return None
    return Hole(first=first, last=last, instruments=tuple(sorted(chosen)))


def _draw_count(num_playing: int, random: np.random.Generator) -> int:
    """How many of at least two instruments stand last; at least one is left to be read."""
    fate, any_count = random.random(), int(random.integers(1, num_playing))
    if fate < _SHARE_OF_ONE:
        return 1
    return min(2, num_playing - 1) if fate < _SHARE_OF_ONE + _SHARE_OF_TWO else any_count


def _without_attributes(ids: np.ndarray, num_tokens: int) -> np.ndarray | None:
    """A window whose prefix is shorter by so many tokens or a few more; None where it is not."""
    kind = KIND_OF.take(ids[: prefix_length(ids)])
    keep = np.ones(len(ATTRIBUTE_KINDS), dtype=bool)
    for expendable in _EXPENDABLE:
        if num_tokens <= 0:
            break
        num_tokens -= int(np.count_nonzero(is_kind(kind, expendable)))
        keep[ATTRIBUTE_KINDS.index(expendable)] = False
    return None if num_tokens > 0 else drop_attributes(ids, keep)
