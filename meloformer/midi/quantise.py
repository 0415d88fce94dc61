"""Piece -> QuantisedPiece: rounding to the grid, with every loss counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meloformer.midi.bars import BarCounts, bar_of_steps, lay_bars
from meloformer.midi.grid import (
    DRUMS,
    DURATION_STEPS,
    METRE_STEPS,
    STEPS_PER_QUARTER,
    TEMPOS_BPM,
    VELOCITIES,
    nearest_index,
)
from meloformer.midi.limits import MAX_QUARTERS
from meloformer.midi.piece import Notes, Piece, Tempos
from meloformer.midi.quantised import QuantisedPiece

DEFAULT_TEMPO_BPM = 120.0  # the MIDI standard's, where a file states none

_SECONDS_PER_MINUTE = 60.0

# A note is packed into one integer: notes then sort without an order to gather by. The lowest
# bits hold duration and velocity as indices of their tables, where longer and louder is greater.
_VELOCITY_BITS = (len(VELOCITIES) - 1).bit_length()
_DURATION_BITS = len(DURATION_STEPS).bit_length()
_SOUND_BITS = _DURATION_BITS + _VELOCITY_BITS
_PITCH_BITS = 7
_ONSET_BITS = 9  # inside a bar
_INSTRUMENT_BITS = 8
_TIME_BITS = (MAX_QUARTERS * STEPS_PER_QUARTER).bit_length()  # inside a piece

# Halfway between neighbours; the tempo at an edge belongs to the slower one.
_TEMPO_EDGES = (TEMPOS_BPM[1:] + TEMPOS_BPM[:-1]) / 2

_LONGEST_STEPS = int(DURATION_STEPS[-1])
_VELOCITY_INDEX = nearest_index(np.arange(128), VELOCITIES)
# Durations lie between table entries, halfway at half steps: rounded up to one of those, they have
# the same nearest entry. One more half step than the longest means off the table.
_TOO_LONG = len(DURATION_STEPS)
_NEAREST_DURATION = np.append(
    nearest_index(np.arange(2 * _LONGEST_STEPS + 1) / 2, DURATION_STEPS), _TOO_LONG
)
# Index of the longest duration within so many steps.
_DURATION_WITHIN = np.searchsorted(DURATION_STEPS, np.arange(_LONGEST_STEPS + 1), "right") - 1


@dataclass(frozen=True, kw_only=True)
class QuantiseCounts:
    """What quantising found and what it gave up; whole numbers, so that they add up.

    Args:
        notes: notes of the file.
        merged: notes that fell on another of the same instrument, onset and pitch.
        durations_cut: notes shortened to the next onset of their instrument and pitch.
        durations_capped: notes shortened to the table's longest duration.
        zero_length: notes without a duration.
        pedal_lengthened: notes that the sustain pedal made longer.
        bends: pitch bends, dropped.
        controllers: controllers other than the pedal, dropped.
        tempos_averaged: tempo changes inside a bar, averaged into the bar's one tempo.
        tempos_clamped: bars whose tempo lies beyond the ends of the table.
        bars: what happened to the bar lines.
    """

    notes: int
    merged: int
    durations_cut: int
    durations_capped: int
    zero_length: int
    pedal_lengthened: int
    bends: int
    controllers: int
    tempos_averaged: int
    tempos_clamped: int
    bars: BarCounts


def quantise(piece: Piece, *, pedal: bool = True) -> QuantisedPiece:
    """Round a piece to the grid.

    Args:
        piece: music in ticks.
        pedal: let the sustain pedal lengthen notes.

    Raises:
        MidiError: too many bars, or a metre finer than the grid.
    """
    return quantise_counted(piece, pedal=pedal)[0]


def quantise_counted(piece: Piece, *, pedal: bool = True) -> tuple[QuantisedPiece, QuantiseCounts]:
    """Round a piece to the grid and count what the grid could not hold.

    Onsets go to the nearest step, halves up, on the piece's own time line: one that rounds past
    a bar line belongs to the next bar. Durations go to the nearest entry of their table.

    Args:
        piece: music in ticks.
        pedal: let the sustain pedal lengthen notes.

    Raises:
        MidiError: too many bars, or a metre finer than the grid.
    """
    notes, ticks_per_quarter = piece.notes, piece.ticks_per_quarter
    duration_ticks, num_lengthened = notes.duration_ticks, 0
    if pedal:
        duration_ticks, num_lengthened = _sounding_ticks(piece)
    packed, num_merged = _merge(_pack(piece, notes, duration_ticks))
    packed, num_cut, num_capped = _cut_durations(packed)
    onset_steps = (packed >> _SOUND_BITS) & ((1 << _TIME_BITS) - 1)

    metres = piece.time_signatures
    bar_metre, bar_counts = lay_bars(
        _to_steps(metres.onset_ticks, ticks_per_quarter).tolist(),
        list(zip(metres.numerator.tolist(), metres.denominator.tolist(), strict=True)),
        int(onset_steps.max()),
    )
    starts = np.zeros(len(bar_metre) + 1, np.int64)
    np.cumsum(METRE_STEPS[bar_metre], out=starts[1:])
    bar_bpm, tempos_averaged = _bar_tempos(piece.tempos, starts, ticks_per_quarter)
    tempos_clamped = np.count_nonzero((bar_bpm < TEMPOS_BPM[0]) | (bar_bpm > TEMPOS_BPM[-1]))

    bar = bar_of_steps(bar_metre)[onset_steps]
    quantised = QuantisedPiece(
        bar_metre=bar_metre,
        bar_tempo=_TEMPO_EDGES.searchsorted(bar_bpm).astype(np.int32),
        **_canonical_columns(packed, bar, onset_steps - starts[bar]),
    )
    return quantised, QuantiseCounts(
        notes=len(notes),
        merged=num_merged,
        durations_cut=num_cut,
        durations_capped=num_capped,
        zero_length=sum(track.num_zero_length for track in piece.tracks),
        pedal_lengthened=num_lengthened,
        bends=sum(track.num_bends for track in piece.tracks),
        controllers=sum(track.num_controllers for track in piece.tracks),
        tempos_averaged=tempos_averaged,
        tempos_clamped=int(tempos_clamped),
        bars=bar_counts,
    )


def _to_steps(ticks: np.ndarray, ticks_per_quarter: int) -> np.ndarray:
    """Nearest grid step, halves up, in exact integer arithmetic.

    >>> _to_steps(np.array([9, 10, 20]), 480).tolist()
    [0, 1, 1]
    """
    doubled = ticks.astype(np.int64) * (2 * STEPS_PER_QUARTER) + ticks_per_quarter
    return doubled // (2 * ticks_per_quarter)


def _sounding_ticks(piece: Piece) -> tuple[np.ndarray, int]:
    """Durations with the sustain pedal: a key released while it is down sounds until it rises.

    Returns:
        (num_notes,) durations, and how many the pedal made longer.
    """
    sounding, num_lengthened = [], 0
    for track in piece.tracks:
        notes, pedal = track.notes, track.pedal
        duration_ticks = notes.duration_ticks
        if len(pedal) and len(notes) and not track.is_drum:
            key_up = notes.onset_ticks.astype(np.int64) + duration_ticks
            interval = pedal.start_ticks.searchsorted(key_up, side="right")
            # Before the first interval none has ended yet.
            pedal_up = np.concatenate([[0], pedal.end_ticks])[interval]
            num_lengthened += int(np.count_nonzero(pedal_up > key_up))
            duration_ticks = np.maximum(key_up, pedal_up) - notes.onset_ticks
        sounding.append(duration_ticks)
    return np.concatenate(sounding), num_lengthened


def _pack(piece: Piece, notes: Notes, duration_ticks: np.ndarray) -> np.ndarray:
    """(num_notes,) int64, from the highest bits: instrument, pitch, onset, duration, velocity."""
    instruments = [DRUMS if track.is_drum else 1 + track.program for track in piece.tracks]
    packed = np.array(instruments).repeat([len(track.notes) for track in piece.tracks])
    packed <<= _PITCH_BITS
    packed |= notes.pitch
    packed <<= _TIME_BITS
    packed |= _to_steps(notes.onset_ticks, piece.ticks_per_quarter)
    packed <<= _DURATION_BITS
    packed |= _duration_index(duration_ticks, piece.ticks_per_quarter)
    packed <<= _VELOCITY_BITS
    packed |= _VELOCITY_INDEX[notes.velocity]
    return packed


def _duration_index(ticks: np.ndarray, ticks_per_quarter: int) -> np.ndarray:
    """Nearest entries of DURATION_STEPS, the shorter one at a tie; _TOO_LONG beyond the last.

    >>> _duration_index(np.array([1, 510, 511, 15_360, 15_361]), 480).tolist()
    [0, 24, 25, 79, 80]
    """
    half_steps = ticks.astype(np.int64)
    half_steps *= 2 * STEPS_PER_QUARTER
    half_steps += ticks_per_quarter - 1
    half_steps //= ticks_per_quarter
    return _NEAREST_DURATION[np.minimum(half_steps, 2 * _LONGEST_STEPS + 1, out=half_steps)]


def _merge(packed: np.ndarray) -> tuple[np.ndarray, int]:
    """Sort notes; of those equal in instrument, pitch and onset keep the longest and loudest.

    Args:
        packed: (N,) notes as `_pack` makes them; sorted in place.

    Returns:
        the notes that stay, and how many went.
    """
    packed.sort()
    place = packed >> _SOUND_BITS
    is_last = np.ones(len(place), bool)
    np.not_equal(place[1:], place[:-1], out=is_last[:-1])
    last = np.flatnonzero(is_last)
    num_merged = len(packed) - len(last)
    if num_merged:
        # The last of a run is the longest, but not always the loudest.
        first = np.concatenate([[0], last[:-1] + 1])
        velocity_mask = (1 << _VELOCITY_BITS) - 1
        loudest = np.maximum.reduceat(packed & velocity_mask, first)
        packed = packed[last] & ~velocity_mask | loudest
    return packed, num_merged


def _cut_durations(packed: np.ndarray) -> tuple[np.ndarray, int, int]:
    """Let every note end by the next onset of its instrument and pitch, and inside the table.

    Args:
        packed: (N,) notes, ascending.

    Returns:
        the notes, how many were cut, how many capped.
    """
    duration = (packed >> _VELOCITY_BITS) & ((1 << _DURATION_BITS) - 1)
    is_capped = duration == _TOO_LONG
    # Another instrument or pitch lies further off than any duration, as does the end.
    place = packed >> _SOUND_BITS
    gap = np.empty_like(place)
    np.subtract(place[1:], place[:-1], out=gap[:-1])
    gap[-1] = _LONGEST_STEPS
    longest = _DURATION_WITHIN[np.minimum(gap, _LONGEST_STEPS, out=gap)]
    shorter = np.minimum(duration, longest)
    num_capped = int(np.count_nonzero(is_capped))
    # What is only too long for the table is capped and not cut.
    num_cut = int(np.count_nonzero(longest < duration - is_capped))
    return packed + ((shorter - duration) << _VELOCITY_BITS), num_cut, num_capped


def _canonical_columns(
    packed: np.ndarray, bar: np.ndarray, onset_steps: np.ndarray
) -> dict[str, np.ndarray]:
    """Columns of a QuantisedPiece.

    Args:
        packed: (N,) notes as `_pack` makes them.
        bar: (N,) bar of each.
        onset_steps: (N,) from the bar line.
    """
    voice = packed >> (_TIME_BITS + _SOUND_BITS)
    ordered = bar.astype(np.int64)
    ordered <<= _INSTRUMENT_BITS
    ordered |= voice >> _PITCH_BITS
    ordered <<= _ONSET_BITS
    ordered |= onset_steps
    ordered <<= _PITCH_BITS
    ordered |= voice & ((1 << _PITCH_BITS) - 1)
    ordered <<= _SOUND_BITS
    ordered |= packed & ((1 << _SOUND_BITS) - 1)
    ordered.sort()

    def take_lowest(num_bits: int) -> np.ndarray:
        lowest = (ordered & ((1 << num_bits) - 1)).astype(np.int32)
        np.right_shift(ordered, num_bits, out=ordered)
        return lowest

    return {
        "velocity": VELOCITIES[take_lowest(_VELOCITY_BITS)],
        "duration_steps": DURATION_STEPS[take_lowest(_DURATION_BITS)],
        "pitch": take_lowest(_PITCH_BITS),
        "onset_steps": take_lowest(_ONSET_BITS),
        "instrument": take_lowest(_INSTRUMENT_BITS),
        "bar": ordered.astype(np.int32),
    }


def _bar_tempos(
    tempos: Tempos, bar_start_steps: np.ndarray, ticks_per_quarter: int
) -> tuple[np.ndarray, int]:
    """One tempo for each bar, which keeps the bar's length in seconds.

    Args:
        tempos: tempo changes.
        bar_start_steps: (num_bars + 1,) bar lines, the last one the end.
        ticks_per_quarter: resolution of the tempo events.

    Returns:
        (num_bars,) float64 quarters per minute, and how many changes fell inside a bar.
    """
    if len(tempos) < 2 and not tempos.onset_ticks.any():
        only_bpm = tempos.bpm[0] if len(tempos) else DEFAULT_TEMPO_BPM
        return np.full(len(bar_start_steps) - 1, only_bpm), 0
    line_quarters = bar_start_steps / STEPS_PER_QUARTER
    num_quarters = line_quarters[1:] - line_quarters[:-1]
    change_quarters = tempos.onset_ticks / ticks_per_quarter
    # The clock is a broken line through the changes; one more point carries it past the end.
    end = max(change_quarters[-1], line_quarters[-1]) + 1.0
    knots, bpm = np.concatenate([change_quarters, [end]]), tempos.bpm
    if change_quarters[0] > 0:
        knots = np.concatenate([[0.0], knots])
        bpm = np.concatenate([[DEFAULT_TEMPO_BPM], bpm])
    clock = np.zeros(len(knots))
    np.cumsum((knots[1:] - knots[:-1]) * _SECONDS_PER_MINUTE / bpm, out=clock[1:])
    line_seconds = np.interp(line_quarters, knots, clock)
    bar_bpm = num_quarters * _SECONDS_PER_MINUTE / (line_seconds[1:] - line_seconds[:-1])

    change_steps = _to_steps(tempos.onset_ticks, ticks_per_quarter)
    line = bar_start_steps.searchsorted(change_steps, side="right") - 1
    is_inside = (bar_start_steps[line] != change_steps) & (change_quarters < line_quarters[-1])
    return bar_bpm, int(np.count_nonzero(is_inside))
