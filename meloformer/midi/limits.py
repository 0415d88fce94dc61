"""What a MIDI file must satisfy to be used at all: the single home of sizes and ranges."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from meloformer.errors import MidiError
from meloformer.midi.grid import MAX_BAR_STEPS, STEPS_PER_QUARTER

if TYPE_CHECKING:
    from meloformer.midi.piece import Notes, Piece

MAX_FILE_BYTES = 64 * 2**20
MAX_TICKS = 2**31 - 1
MAX_TICKS_PER_QUARTER = 2**15 - 1  # the field has fifteen bits
MAX_NOTES = 200_000
MAX_BARS = 4096
MAX_QUARTERS = MAX_BARS * MAX_BAR_STEPS // STEPS_PER_QUARTER
# Wider than the tempo table, whose ends take what lies outside it.
MIN_TEMPO_BPM = 5.0
MAX_TEMPO_BPM = 1000.0


def check_piece(piece: Piece) -> None:
    """Refuse values that no music has and sizes that no row takes.

    Raises:
        MidiError: with one reason per kind of fault.
    """
    if not 1 <= piece.ticks_per_quarter <= MAX_TICKS_PER_QUARTER:
        found = f"{piece.ticks_per_quarter} ticks per quarter"
        raise MidiError("ticks_per_quarter", f"{found}; allowed 1..{MAX_TICKS_PER_QUARTER}")
    if piece.num_notes == 0:
        raise MidiError("no_notes", f"{len(piece.tracks)} tracks without a note")
    if piece.num_notes > MAX_NOTES:
        raise MidiError("too_many_notes", f"{piece.num_notes} notes; allowed {MAX_NOTES}")
    _check_notes(piece.notes)
    num_quarters = piece.last_onset_ticks // piece.ticks_per_quarter
    if num_quarters > MAX_QUARTERS:
        raise MidiError("too_long", f"{num_quarters} quarters; allowed {MAX_QUARTERS}")
    for track in piece.tracks:
        if len(track.notes) and not 0 <= track.program <= 127:
            raise MidiError("program_range", f"program {track.program}; allowed 0..127")
    _check_tempos(piece)
    _check_metres(piece)


def _check_notes(notes: Notes) -> None:
    _check_range("pitch_range", "pitch", notes.pitch, 0, 127)
    # A note-on of velocity 0 is a note-off: such a note could not be written.
    _check_range("velocity_range", "velocity", notes.velocity, 1, 127)
    _check_range("negative_time", "onset in ticks", notes.onset_ticks, 0, MAX_TICKS)
    _check_range("negative_duration", "duration in ticks", notes.duration_ticks, 1, MAX_TICKS)


def _check_range(reason: str, what: str, values: np.ndarray, low: int, high: int) -> None:
    smallest, largest = int(values.min()), int(values.max())
    if smallest < low or largest > high:
        found = smallest if smallest < low else largest
        raise MidiError(reason, f"{what} {found}; allowed {low}..{high}")


def _check_tempos(piece: Piece) -> None:
    for bpm in piece.tempos.bpm.tolist():
        if not MIN_TEMPO_BPM <= bpm <= MAX_TEMPO_BPM:  # also true for nan
            found = f"{bpm:g} quarters per minute"
            raise MidiError(
                "impossible_tempo", f"{found}; allowed {MIN_TEMPO_BPM:g}..{MAX_TEMPO_BPM:g}"
            )


def _check_metres(piece: Piece) -> None:
    metres = piece.time_signatures
    for numerator, denominator in zip(
        metres.numerator.tolist(), metres.denominator.tolist(), strict=True
    ):
        if numerator < 1 or denominator < 1 or denominator & (denominator - 1):
            found = f"metre {numerator}/{denominator}"
            allowed = "allowed numerator from 1, denominator a power of two"
            raise MidiError("impossible_metre", f"{found}; {allowed}")
