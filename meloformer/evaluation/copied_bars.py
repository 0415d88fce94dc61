"""Bars of new music that stand in other music already: how many, and how many in a row.

Two bars are one where their notes are: instrument, onset, pitch and duration of each; loudness,
tempo and metre do not count. Moved to another pitch, they are one where the same holds of all
pitches but the drums' above the lowest.
"""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from meloformer.midi.grid import DRUMS
from meloformer.midi.quantised import QuantisedPiece

Likeness = Literal["verbatim", "transposed"]
# Bars of fewer notes, a held chord or a rest, are everybody's.
MIN_NOTES = 4

# What a bar holds; None where that is too little to tell.
BarContent = bytes | None


@dataclass(frozen=True, kw_only=True)
class CopyCount:
    """How much of some pieces stands elsewhere.

    Args:
        num_bars: (P,) bars of each piece that have notes enough to tell.
        num_found: (P,) of them, those that were found.
        longest_run: most bars in a row that stand in a row in one other piece too.
    """

    num_bars: np.ndarray
    num_found: np.ndarray
    longest_run: int

    @property
    def share(self) -> float:
        """Of all bars, those that were found; 0 where there are none."""
        return float(self.num_found.sum() / max(self.num_bars.sum(), 1))

    @property
    def spread(self) -> float:
        """Standard deviation of the share over pieces, weighted by their bars; 0 of one piece."""
        told = self.num_bars > 0
        if told.sum() < 2:
            return 0.0
        shares = self.num_found[told] / self.num_bars[told]
        squares = np.average((shares - self.share) ** 2, weights=self.num_bars[told])
        return float(np.sqrt(squares * told.sum() / (told.sum() - 1)))


def bar_contents(music: QuantisedPiece, likeness: Likeness) -> list[BarContent]:
    """Each bar as bytes that are equal where the bars are one.

    Args:
        music: canonical, so that equal bars have their notes in equal order.
        likeness: `verbatim`, or `transposed`: whatever the key.
    """
    edges = np.searchsorted(music.bar, np.arange(music.num_bars + 1))
    pitch = music.pitch
    if likeness == "transposed":
        melodic = music.instrument != DRUMS
        lowest = np.full(music.num_bars, np.iinfo(np.int32).max, np.int32)
        np.minimum.at(lowest, music.bar[melodic], pitch[melodic])
        pitch = np.where(melodic, pitch - lowest[music.bar], pitch)
    columns = (music.instrument, music.onset_steps, pitch, music.duration_steps)
    notes = np.stack(columns, axis=1).astype(np.int32)
    return [
        notes[first:end].tobytes() if end - first >= MIN_NOTES else None
        for first, end in zip(edges[:-1].tolist(), edges[1:].tolist(), strict=True)
    ]


class CopySearch:
    """Looks for the bars of some pieces in others, which come one at a time and are not kept.

    Args:
        pieces: bars of each piece that may hold copies, as `bar_contents` gives them.
    """

    def __init__(self, pieces: Sequence[Sequence[BarContent]]) -> None:
        self._pieces = pieces
        self._places: dict[bytes, list[tuple[int, int]]] = defaultdict(list)
        for piece, bars in enumerate(pieces):
            for bar, content in enumerate(bars):
                if content is not None:
                    self._places[content].append((piece, bar))
        self._found: set[bytes] = set()
        self._longest = [0] * len(pieces)

    def look_into(self, others: Iterable[Sequence[BarContent]]) -> None:
        """Look for all bars in other pieces.

        Args:
            others: bars of each.
        """
        for other in others:
            # Of each place whose bar is the one before: how many in a row have been equal.
            runs: dict[tuple[int, int], int] = {}
            for content in other:
                places = self._places.get(content, ()) if content is not None else ()
                runs = {(p, bar): runs.get((p, bar - 1), 0) + 1 for p, bar in places}
                if content is not None and places:
                    self._found.add(content)
                for (piece, _), length in runs.items():
                    self._longest[piece] = max(self._longest[piece], length)

    def count(self, pieces: slice) -> CopyCount:
        """What has been found of some of the pieces."""
        some = self._pieces[pieces]
        return CopyCount(
            num_bars=np.array([sum(bar is not None for bar in bars) for bars in some], np.int64),
            num_found=np.array(
                [sum(bar in self._found for bar in bars) for bars in some], np.int64
            ),
            longest_run=max(self._longest[pieces], default=0),
        )
