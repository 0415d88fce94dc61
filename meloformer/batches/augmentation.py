"""Augmentation: how far a window may be shifted in key, tempo and loudness."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from meloformer.errors import ConfigError
from meloformer.midi.grid import TEMPOS_BPM, VELOCITIES
from meloformer.tokens.shift import shift_tempo, shift_velocity, tempo_shifts, velocity_shifts
from meloformer.tokens.transpose import transpose, transpositions

_Shift = Callable[[np.ndarray, int], np.ndarray]
_Range = Callable[[np.ndarray], tuple[int, int]]


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """Shifts drawn for each window, as far as its values stay inside their tables; 0 never shifts.

    Args:
        max_transposition: semitones up or down by which a window may be transposed; drums stay.
        max_tempo_shift: bins of the tempo table up or down; sixteen are an octave of tempo.
        max_velocity_shift: bins of the velocity table up or down.
    """

    max_transposition: int = 0
    max_tempo_shift: int = 0
    max_velocity_shift: int = 0

    def __post_init__(self) -> None:
        highest = {
            "max_transposition": 11,
            "max_tempo_shift": len(TEMPOS_BPM) - 1,
            "max_velocity_shift": len(VELOCITIES) - 1,
        }
        for name, allowed in highest.items():
            if not 0 <= getattr(self, name) <= allowed:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed 0..{allowed}")

    def shifted(self, ids: np.ndarray, random: np.random.Generator) -> np.ndarray:
        """A window, shifted by what is drawn."""
        shifts: tuple[tuple[int, _Range, _Shift], ...] = (
            (self.max_transposition, transpositions, transpose),
            (self.max_tempo_shift, tempo_shifts, shift_tempo),
            (self.max_velocity_shift, velocity_shifts, shift_velocity),
        )
        for most, allowed, shift in shifts:
            if most:
                lowest, highest = allowed(ids)
                drawn = random.integers(max(lowest, -most), min(highest, most) + 1)
                ids = shift(ids, int(drawn))
        return ids


NO_AUGMENTATION = Augmentation()
