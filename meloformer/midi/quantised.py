"""QuantisedPiece: music on the grid, bar by bar; what tokens/ encodes and decodes."""

from dataclasses import dataclass, fields
from functools import cached_property

import numpy as np

from meloformer.midi.grid import DRUMS, METRE_STEPS


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantisedPiece:
    """Bars and notes on the grid, in canonical order.

    Canonical: notes sorted by (bar, instrument, onset_steps, pitch), at most one note per such
    quadruple; a note never sounds into the next onset of the same instrument and pitch; every
    value stands in its table of midi/grid.py; the last bar holds at least one note.

    Args:
        bar_metre: (num_bars,) int32, index into METRES.
        bar_tempo: (num_bars,) int32, index into TEMPOS_BPM.
        bar: (num_notes,) int32, bar in which the note starts.
        instrument: (num_notes,) int32, 0 drums, 1 + program otherwise.
        onset_steps: (num_notes,) int32, from the bar line.
        pitch: (num_notes,) int32, 0..127.
        duration_steps: (num_notes,) int32, an entry of DURATION_STEPS; may cross bar lines.
        velocity: (num_notes,) int32, an entry of VELOCITIES.
    """

    bar_metre: np.ndarray
    bar_tempo: np.ndarray
    bar: np.ndarray
    instrument: np.ndarray
    onset_steps: np.ndarray
    pitch: np.ndarray
    duration_steps: np.ndarray
    velocity: np.ndarray

    @property
    def num_bars(self) -> int:
        return len(self.bar_metre)

    @property
    def num_notes(self) -> int:
        return len(self.bar)

    @cached_property
    def bar_start_steps(self) -> np.ndarray:
        """(num_bars + 1,) int64 start of each bar in steps; the last entry is the end."""
        starts = np.zeros(self.num_bars + 1, np.int64)
        np.cumsum(METRE_STEPS[self.bar_metre], out=starts[1:])
        return starts

    @cached_property
    def start_steps(self) -> np.ndarray:
        """(num_notes,) int32 onset of each note from the start of the piece."""
        return self.bar_start_steps.astype(np.int32).take(self.bar) + self.onset_steps

    @cached_property
    def melodic(self) -> np.ndarray | slice:
        """Selects the notes that are no drums from the columns of the notes."""
        notes = np.flatnonzero(self.instrument != DRUMS)
        return slice(None) if len(notes) == self.num_notes else notes

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, QuantisedPiece):
            return NotImplemented
        return all(
            np.array_equal(getattr(self, field.name), getattr(other, field.name))
            for field in fields(self)
        )

    __hash__ = None  # type: ignore[assignment]  # arrays inside: equality without a hash
