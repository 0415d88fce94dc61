"""Which pieces are music worth training on: one predicate, one reason and one flag each.

midi/limits.py refuses what no row can hold; these refuse what can be held and is not wanted. Where
onsets stand refuses nothing: steady sixteenths are music, and so is a pianist's rubato.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meloformer.errors import ConfigError, MidiError
from meloformer.midi import limits
from meloformer.midi.grid import METRE_STEPS, NUM_INSTRUMENTS, STEPS_PER_QUARTER, TEMPOS_BPM
from meloformer.midi.piece import Piece
from meloformer.midi.quantised import QuantisedPiece

_NUM_PITCHES = 128
_SECONDS_PER_STEP = 60.0 / (STEPS_PER_QUARTER * TEMPOS_BPM)
_MAX_SECONDS = 86_400.0

# Reason, what is measured, the setting that bounds it, and what the number counts.
_PREDICATES = (
    ("too_few_bars", "num_bars", "min_bars", "bars"),
    ("too_many_bars", "num_bars", "max_bars", "bars"),
    ("too_few_notes", "num_notes", "min_notes", "notes"),
    ("too_few_pitches", "num_pitches", "min_pitches", "distinct pitches"),
    ("one_note_repeated", "repeat_share", "max_repeat_share", "of all notes are one note"),
    ("too_many_tracks", "num_tracks", "max_tracks", "instruments"),
    ("too_short", "num_seconds", "min_seconds", "seconds"),
    ("too_long_to_play", "num_seconds", "max_seconds", "seconds"),
    ("empty_bars", "empty_share", "max_empty_share", "of all bars are empty"),
    ("silent_start", "silence_seconds", "max_silence_seconds", "seconds before the first note"),
)
# The least and the most that each setting may be.
_ALLOWED = {
    "min_bars": (0, limits.MAX_BARS),
    "max_bars": (1, limits.MAX_BARS),
    "min_notes": (0, limits.MAX_NOTES),
    "min_pitches": (0, _NUM_PITCHES),
    "min_seconds": (0.0, _MAX_SECONDS),
    "max_seconds": (0.0, _MAX_SECONDS),
    "max_empty_share": (0.0, 1.0),
    "max_repeat_share": (0.0, 1.0),
    "max_silence_seconds": (0.0, _MAX_SECONDS),
    "max_tracks": (1, NUM_INSTRUMENTS),
}


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What a piece must be to be kept."""

    min_bars: int = 4
    """Fewest bars of a piece; fewer are jingles and fragments."""
    max_bars: int = 2048
    """Most bars of a piece."""
    min_notes: int = 16
    """Fewest notes of a piece."""
    min_pitches: int = 2
    """Fewest distinct pitches; of a drum kit each drum is one, so kick and snare make two."""
    min_seconds: float = 3.0
    """Shortest piece, from the first bar line to the last."""
    max_seconds: float = 3600.0
    """Longest piece, from the first bar line to the last."""
    max_empty_share: float = 0.5
    """Largest share of bars in which no note starts."""
    max_repeat_share: float = 0.95
    """Largest share of one pitch of one instrument among all notes: a steady hi-hat over a few
    kicks stays below, a stuck key does not."""
    max_silence_seconds: float = 30.0
    """Longest silence before the first note; transcribed songs start as their recordings do."""
    max_tracks: int = 32
    """Most instruments of a piece; tracks of one program are one, all drums are one."""

    def __post_init__(self) -> None:
        for low, high in (("min_bars", "max_bars"), ("min_seconds", "max_seconds")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"--{low} {getattr(self, low)} with --{high} {getattr(self, high)} leaves no "
                    "piece: the least must not be above the most"
                )
        for name, (least, most) in _ALLOWED.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed {least} to {most}")


def check_quality(quantised: QuantisedPiece, settings: FilterSettings) -> None:
    """Refuse a piece that is not wanted; the first predicate that fails names the reason.

    Args:
        quantised: the piece.
        settings: what is wanted.

    Raises:
        MidiError: too_few_bars, too_many_bars, too_few_notes, too_few_pitches, one_note_repeated,
            too_many_tracks, too_short, too_long_to_play, empty_bars or silent_start.
    """
    found = _measures(quantised)
    for reason, measure, bound, what in _PREDICATES:
        value, allowed = found[measure], getattr(settings, bound)
        is_least = bound.startswith("min_")
        if value < allowed if is_least else value > allowed:
            raise MidiError(
                reason,
                f"{round(float(value), 3):g} {what}; "
                f"allowed {'from' if is_least else 'up to'} {allowed:g} "
                f"(--{bound})",
            )


def bar_seconds(quantised: QuantisedPiece) -> np.ndarray:
    """Length of each bar.

    Returns:
        (num_bars,) float64 seconds.
    """
    return METRE_STEPS[quantised.bar_metre] * _SECONDS_PER_STEP[quantised.bar_tempo]


def off_grid_share(piece: Piece) -> float:
    """Share of onsets that stand further than a quarter of a grid step from the grid.

    Engraved music scores 0, since a file's own ticks are finer than that. Onsets that fall anywhere
    score one half: half of every step lies further off.
    """
    onset_ticks = piece.notes.onset_ticks
    # In whole numbers, so that no rounding decides: here a step is `ticks_per_quarter` long.
    past_step = onset_ticks.astype(np.int64) * STEPS_PER_QUARTER % piece.ticks_per_quarter
    to_grid = np.minimum(past_step, piece.ticks_per_quarter - past_step)
    return float(np.count_nonzero(4 * to_grid > piece.ticks_per_quarter) / len(onset_ticks))


def _measures(quantised: QuantisedPiece) -> dict[str, float]:
    """What the predicates judge."""
    num_bars, num_notes = quantised.num_bars, quantised.num_notes
    instrument, pitch, bar = quantised.instrument, quantised.pitch, quantised.bar
    seconds = bar_seconds(quantised)
    first = bar[0]  # ascending
    first_onset = quantised.onset_steps[: np.searchsorted(bar, first, side="right")].min()
    seconds_before = seconds[:first].sum()
    seconds_before += first_onset * _SECONDS_PER_STEP[quantised.bar_tempo[first]]
    return {
        "num_bars": num_bars,
        "num_notes": num_notes,
        "num_pitches": np.count_nonzero(np.bincount(pitch)),
        "num_tracks": np.count_nonzero(np.bincount(instrument)),
        "repeat_share": np.bincount(instrument * _NUM_PITCHES + pitch).max() / num_notes,
        "num_seconds": seconds.sum(),
        "empty_share": 1.0 - (1 + np.count_nonzero(bar[1:] != bar[:-1])) / num_bars,
        "silence_seconds": seconds_before,
    }
