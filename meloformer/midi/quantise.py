"""Piece -> QuantisedPiece: rounding to the grid, with every loss counted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from meloformer.midi.bar_tempos import bar_tempos
from meloformer.midi.bars import BarCounts, bar_of_steps, lay_bars
from meloformer.midi.grid import (
    DRUMS,
    DURATION_STEPS,
    METRE_STEPS,
    STEPS_PER_QUARTER,
    TEMPOS_BPM,
    VELOCITIES,
    nearest_index,
    ticks_to_steps,
)
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.limits import MAX_QUARTERS
from meloformer.midi.piece import Piece, Track
from meloformer.midi.quantised import QuantisedPiece

# Look-ups go through `take`: with 32-bit indices it needs half the time of brackets.

# A note is packed into one integer: notes then sort without an order to gather by. The lowest
# bits hold duration and velocity as indices of their tables, where longer and louder is greater.
_VELOCITY_BITS = (len(VELOCITIES) - 1).bit_length()
_DURATION_BITS = len(DURATION_STEPS).bit_length()
_SOUND_BITS = _DURATION_BITS + _VELOCITY_BITS
_PITCH_BITS = 7
_ONSET_BITS = 9  # inside a bar
_INSTRUMENT_BITS = 8
_TIME_BITS = (MAX_QUARTERS * STEPS_PER_QUARTER).bit_length()  # inside a piece
_PIECE_SHIFT = _INSTRUMENT_BITS + _PITCH_BITS + _TIME_BITS + _SOUND_BITS
_TRACK_SHIFT = 33  # a note ends at most twice the last tick after the start

# Pieces that are quantised in one pass: what comes after counts the steps of all of them together
# in 32 bits.
MAX_PIECES = 1 << 10
assert MAX_PIECES * MAX_QUARTERS * STEPS_PER_QUARTER < 1 << 31

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
    """Round a piece to the grid and count what the grid could not hold; see `quantise_pieces`."""
    joined, [counts] = quantise_pieces([piece], pedal=pedal)
    return joined.music, counts


def quantise_pieces(
    pieces: Sequence[Piece], *, pedal: bool = True
) -> tuple[JoinedPieces, list[QuantiseCounts]]:
    """Round pieces to the grid and count what the grid could not hold.

    Onsets go to the nearest step, halves up, on the piece's own time line: one that rounds past
    a bar line belongs to the next bar. Durations go to the nearest entry of their table.

    Args:
        pieces: 1..MAX_PIECES of them, music in ticks.
        pedal: let the sustain pedal lengthen notes.

    Returns:
        the pieces joined, and of each the counts.

    Raises:
        MidiError: a piece has too many bars, or a metre finer than the grid.
    """
    assert len(pieces) <= MAX_PIECES, "all of them lie on one time line"
    onset_ticks = _joined_column(pieces, "onset_ticks")
    duration_ticks = _joined_column(pieces, "duration_ticks")
    is_longer = np.zeros(len(onset_ticks), bool)
    if pedal and any(_has_pedal(track) for piece in pieces for track in piece.tracks):
        duration_ticks, is_longer = _sounding_ticks(pieces, onset_ticks, duration_ticks)
    packed = _pack(pieces, onset_ticks, duration_ticks)
    num_notes = np.array([piece.num_notes for piece in pieces])
    packed = _merge(packed)
    first_note = packed.searchsorted(np.arange(len(pieces) + 1) << _PIECE_SHIFT)
    packed, is_cut, is_capped = _cut_durations(packed)
    onset_steps = (packed >> _SOUND_BITS) & ((1 << _TIME_BITS) - 1)

    last_onsets = np.maximum.reduceat(onset_steps, first_note[:-1]).tolist()
    laid = [_bars(piece, last) for piece, last in zip(pieces, last_onsets, strict=True)]
    bar_metre = np.concatenate([bars.metre for bars in laid])
    first_bar = np.zeros(len(pieces) + 1, np.int64)
    np.cumsum([len(bars.metre) for bars in laid], out=first_bar[1:])
    bar_bpm = np.concatenate([bars.bpm for bars in laid])
    is_clamped = (bar_bpm < TEMPOS_BPM[0]) | (bar_bpm > TEMPOS_BPM[-1])

    lines = np.zeros(len(bar_metre) + 1, np.int64)
    np.cumsum(METRE_STEPS[bar_metre], out=lines[1:])
    onset_steps += lines[first_bar[:-1]].repeat(np.diff(first_note))
    bar = bar_of_steps(bar_metre).take(onset_steps)
    music = QuantisedPiece(
        bar_metre=bar_metre,
        bar_tempo=_TEMPO_EDGES.searchsorted(bar_bpm).astype(np.int32),
        **_canonical_columns(packed, bar, onset_steps - lines.take(bar)),
    )
    columns = (
        num_notes,
        num_notes - np.diff(first_note),
        _count(is_cut, first_note[:-1]),
        _count(is_capped, first_note[:-1]),
        _count(is_longer, np.cumsum(num_notes) - num_notes),
        _count(is_clamped, first_bar[:-1]),
    )
    counts = [
        QuantiseCounts(
            notes=notes,
            merged=merged,
            durations_cut=cut,
            durations_capped=capped,
            zero_length=sum(track.num_zero_length for track in piece.tracks),
            pedal_lengthened=longer,
            bends=sum(track.num_bends for track in piece.tracks),
            controllers=sum(track.num_controllers for track in piece.tracks),
            tempos_averaged=bars.tempos_averaged,
            tempos_clamped=clamped,
            bars=bars.counts,
        )
        for piece, bars, notes, merged, cut, capped, longer, clamped in zip(
            pieces, laid, *(column.tolist() for column in columns), strict=True
        )
    ]
    return JoinedPieces(music=music, first_bar=first_bar, first_note=first_note), counts


@dataclass(frozen=True)
class _Bars:
    """Bars of one piece: metre and quarters per minute of each, and what was changed."""

    metre: np.ndarray
    bpm: np.ndarray
    counts: BarCounts
    tempos_averaged: int


def _bars(piece: Piece, last_onset_steps: int) -> _Bars:
    metres = piece.time_signatures
    bar_metre, counts = lay_bars(
        ticks_to_steps(metres.onset_ticks, piece.ticks_per_quarter).tolist(),
        list(zip(metres.numerator.tolist(), metres.denominator.tolist(), strict=True)),
        last_onset_steps,
    )
    bar_bpm, tempos_averaged = bar_tempos(piece.tempos, bar_metre, piece.ticks_per_quarter)
    return _Bars(bar_metre, bar_bpm, counts, tempos_averaged)


def _count(flags: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """(P,) how many of each piece's flags are set; every piece has some."""
    return np.add.reduceat(flags, starts, dtype=np.int64)


def _joined_column(pieces: Sequence[Piece], name: str) -> np.ndarray:
    return np.concatenate([getattr(piece.notes, name) for piece in pieces])


def _resolution(pieces: Sequence[Piece]) -> int | np.ndarray:
    """Ticks per quarter: one number where all pieces have the same, else (N,) of each note."""
    ticks_per_quarter = [piece.ticks_per_quarter for piece in pieces]
    if len(set(ticks_per_quarter)) == 1:
        return ticks_per_quarter[0]
    return np.repeat(ticks_per_quarter, [piece.num_notes for piece in pieces])


def _has_pedal(track: Track) -> bool:
    return len(track.pedal) > 0 and len(track.notes) > 0 and not track.is_drum


def _sounding_ticks(
    pieces: Sequence[Piece], onset_ticks: np.ndarray, duration_ticks: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Durations with the sustain pedal: a key released while it is down sounds until it rises.

    Returns:
        (N,) durations, and (N,) bool whether the pedal made them longer.
    """
    # Tracks are laid end to end, each further from the next than any note or pedal lasts.
    tracks = [track for piece in pieces for track in piece.tracks]
    track_start = np.arange(len(tracks)) << _TRACK_SHIFT
    onset = onset_ticks + track_start.repeat([len(track.notes) for track in tracks])
    key_up = onset + duration_ticks
    pressed = [index for index, track in enumerate(tracks) if _has_pedal(track)]
    pedals = [tracks[index].pedal for index in pressed]
    pedal_start = track_start[pressed].repeat([len(pedal) for pedal in pedals])
    down = np.concatenate([pedal.start_ticks for pedal in pedals]) + pedal_start
    # Before the first interval none has ended yet; one of another track ended long ago.
    up = np.zeros(len(down) + 1, np.int64)
    np.add(np.concatenate([pedal.end_ticks for pedal in pedals]), pedal_start, out=up[1:])
    pedal_up = up[down.searchsorted(key_up, side="right")]
    return np.maximum(key_up, pedal_up) - onset, pedal_up > key_up


def _pack(
    pieces: Sequence[Piece], onset_ticks: np.ndarray, duration_ticks: np.ndarray
) -> np.ndarray:
    """(N,) int64, from the highest bits: piece, instrument, pitch, onset, duration, velocity."""
    voices = [
        (index << _INSTRUMENT_BITS) | (DRUMS if track.is_drum else 1 + track.program)
        for index, piece in enumerate(pieces)
        for track in piece.tracks
    ]
    resolution = _resolution(pieces)
    packed = np.array(voices).repeat(
        [len(track.notes) for piece in pieces for track in piece.tracks]
    )
    packed <<= _PITCH_BITS
    packed |= _joined_column(pieces, "pitch")
    packed <<= _TIME_BITS
    packed |= ticks_to_steps(onset_ticks, resolution)
    packed <<= _DURATION_BITS
    packed |= _duration_index(duration_ticks, resolution)
    packed <<= _VELOCITY_BITS
    packed |= _VELOCITY_INDEX.take(_joined_column(pieces, "velocity"))
    return packed


def _duration_index(ticks: np.ndarray, ticks_per_quarter: int | np.ndarray) -> np.ndarray:
    """Nearest entries of DURATION_STEPS, the shorter one at a tie; _TOO_LONG beyond the last.

    >>> _duration_index(np.array([1, 510, 511, 15_360, 15_361]), 480).tolist()
    [0, 24, 25, 79, 80]
    """
    half_steps = ticks.astype(np.int64)
    half_steps *= 2 * STEPS_PER_QUARTER
    half_steps += ticks_per_quarter - 1
    half_steps //= ticks_per_quarter
    np.minimum(half_steps, 2 * _LONGEST_STEPS + 1, out=half_steps)
    return _NEAREST_DURATION.take(half_steps)


def _merge(packed: np.ndarray) -> np.ndarray:
    """Sort notes; of those equal in instrument, pitch and onset keep the longest and loudest.

    Args:
        packed: (N,) notes as `_pack` makes them; sorted in place.
    """
    packed.sort()
    place = packed >> _SOUND_BITS
    is_last = np.ones(len(place), bool)
    np.not_equal(place[1:], place[:-1], out=is_last[:-1])
    last = np.flatnonzero(is_last)
    if len(last) < len(packed):
        # The last of a run is the longest, but not always the loudest.
        first = np.concatenate([[0], last[:-1] + 1])
        velocity_mask = (1 << _VELOCITY_BITS) - 1
        loudest = np.maximum.reduceat(packed & velocity_mask, first)
        packed = packed[last] & ~velocity_mask | loudest
    return packed


def _cut_durations(packed: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Let every note end by the next onset of its instrument and pitch, and inside the table.

    Args:
        packed: (N,) notes, ascending.

    Returns:
        the notes, and (N,) bool each, which of them were cut and which capped.
    """
    duration = (packed >> _VELOCITY_BITS) & ((1 << _DURATION_BITS) - 1)
    is_capped = duration == _TOO_LONG
    # Another instrument or pitch lies further off than any duration, as does the end.
    place = packed >> _SOUND_BITS
    gap = np.empty_like(place)
    np.subtract(place[1:], place[:-1], out=gap[:-1])
    gap[-1] = _LONGEST_STEPS
    longest = _DURATION_WITHIN.take(np.minimum(gap, _LONGEST_STEPS, out=gap))
    shorter = np.minimum(duration, longest)
    # What is only too long for the table is capped and not cut.
    is_cut = longest < duration - is_capped
    return packed + ((shorter - duration) << _VELOCITY_BITS), is_cut, is_capped


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
    ordered |= (voice >> _PITCH_BITS) & ((1 << _INSTRUMENT_BITS) - 1)
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
        "velocity": VELOCITIES.take(take_lowest(_VELOCITY_BITS)),
        "duration_steps": DURATION_STEPS.take(take_lowest(_DURATION_BITS)),
        "pitch": take_lowest(_PITCH_BITS),
        "onset_steps": take_lowest(_ONSET_BITS),
        "instrument": take_lowest(_INSTRUMENT_BITS),
        "bar": ordered.astype(np.int32),
    }
