"""Piece -> QuantisedPiece: rounding to the grid, with every loss counted."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from meloformer.midi.bars import BarCounts, lay_bars
from meloformer.midi.grid import (
    DRUMS,
    DURATION_STEPS,
    MAX_BAR_STEPS,
    METRE_STEPS,
    NUM_INSTRUMENTS,
    STEPS_PER_QUARTER,
    TEMPOS_BPM,
    VELOCITIES,
    nearest_index,
)
from meloformer.midi.piece import Piece, Tempos, Track
from meloformer.midi.quantised import QuantisedPiece

DEFAULT_TEMPO_BPM = 120.0  # the MIDI standard's, where a file states none

_VELOCITY_OF = VELOCITIES[nearest_index(np.arange(128), VELOCITIES)]
_SECONDS_PER_MINUTE = 60.0


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
    tracks = [track for track in piece.tracks if len(track.notes)]
    lengths = [len(track.notes) for track in tracks]
    instruments = [DRUMS if track.is_drum else 1 + track.program for track in tracks]
    onset_ticks = _column(tracks, "onset_ticks")
    sounding = [_sounding_ticks(track) if pedal else track.notes.duration_ticks for track in tracks]
    duration_ticks = np.concatenate(sounding)
    held = duration_ticks != _column(tracks, "duration_ticks") if pedal else np.zeros(1, bool)

    notes, merged = _merge(
        voice=np.repeat(np.array(instruments) * 128, lengths) + _column(tracks, "pitch"),
        onset_steps=_to_steps(onset_ticks, piece.ticks_per_quarter),
        duration_ticks=duration_ticks,
        velocity=_column(tracks, "velocity"),
    )
    voice, onset_steps, duration_ticks, velocity = notes
    duration_steps, num_cut, num_capped = _durations(
        voice, onset_steps, duration_ticks * (STEPS_PER_QUARTER / piece.ticks_per_quarter)
    )

    metres = piece.time_signatures
    bar_metre, bar_counts = lay_bars(
        _to_steps(metres.onset_ticks, piece.ticks_per_quarter).tolist(),
        list(zip(metres.numerator.tolist(), metres.denominator.tolist(), strict=True)),
        int(onset_steps.max()),
    )
    starts = np.zeros(len(bar_metre) + 1, np.int64)
    np.cumsum(METRE_STEPS[bar_metre], out=starts[1:])
    bar_bpm, tempos_averaged = _bar_tempos(piece.tempos, starts, piece.ticks_per_quarter)
    tempos_clamped = np.count_nonzero((bar_bpm < TEMPOS_BPM[0]) | (bar_bpm > TEMPOS_BPM[-1]))

    bar = np.searchsorted(starts, onset_steps, side="right") - 1
    onset_in_bar = onset_steps - starts[bar]
    instrument, pitch = voice >> 7, voice & 127
    order = np.argsort(
        ((bar * NUM_INSTRUMENTS + instrument) * MAX_BAR_STEPS + onset_in_bar) * 128 + pitch
    )
    quantised = QuantisedPiece(
        bar_metre=bar_metre,
        bar_tempo=nearest_index(bar_bpm, TEMPOS_BPM).astype(np.int32),
        bar=bar[order].astype(np.int32),
        instrument=instrument[order].astype(np.int32),
        onset_steps=onset_in_bar[order].astype(np.int32),
        pitch=pitch[order].astype(np.int32),
        duration_steps=duration_steps[order],
        velocity=_VELOCITY_OF[velocity[order]],
    )
    return quantised, QuantiseCounts(
        notes=len(onset_ticks),
        merged=merged,
        durations_cut=num_cut,
        durations_capped=num_capped,
        zero_length=sum(track.num_zero_length for track in tracks),
        pedal_lengthened=int(np.count_nonzero(held)),
        bends=sum(track.num_bends for track in piece.tracks),
        controllers=sum(track.num_controllers for track in piece.tracks),
        tempos_averaged=tempos_averaged,
        tempos_clamped=int(tempos_clamped),
        bars=bar_counts,
    )


def _column(tracks: list[Track], name: str) -> np.ndarray:
    return np.concatenate([getattr(track.notes, name) for track in tracks])


def _to_steps(ticks: np.ndarray, ticks_per_quarter: int) -> np.ndarray:
    """Nearest grid step, halves up, in exact integer arithmetic.

    >>> _to_steps(np.array([9, 10, 20]), 480).tolist()
    [0, 1, 1]
    """
    doubled = ticks.astype(np.int64) * (2 * STEPS_PER_QUARTER) + ticks_per_quarter
    return doubled // (2 * ticks_per_quarter)


def _sounding_ticks(track: Track) -> np.ndarray:
    """Durations with the sustain pedal: a key released while it is down sounds until it rises."""
    notes, pedal = track.notes, track.pedal
    if len(pedal) == 0 or track.is_drum:
        return notes.duration_ticks
    key_up = notes.onset_ticks.astype(np.int64) + notes.duration_ticks
    interval = np.searchsorted(pedal.start_ticks, key_up, side="right") - 1
    pedal_up = np.where(interval >= 0, pedal.end_ticks[interval], 0)
    return np.maximum(key_up, pedal_up) - notes.onset_ticks


def _merge(
    *,
    voice: np.ndarray,
    onset_steps: np.ndarray,
    duration_ticks: np.ndarray,
    velocity: np.ndarray,
) -> tuple[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray], int]:
    """Sort by (voice, onset); of equal pairs keep one, the longest and loudest.

    Args:
        voice: (N,) instrument * 128 + pitch.
        onset_steps: (N,) int64.
        duration_ticks: (N,).
        velocity: (N,).

    Returns:
        the four columns, shorter by the number that follows them.
    """
    order = np.argsort((voice.astype(np.int64) << 40) | onset_steps)
    voice, onset_steps = voice[order], onset_steps[order]
    duration_ticks, velocity = duration_ticks[order], velocity[order]
    is_new = np.ones(len(voice), bool)
    is_new[1:] = (voice[1:] != voice[:-1]) | (onset_steps[1:] != onset_steps[:-1])
    first = np.flatnonzero(is_new)
    num_merged = len(voice) - len(first)
    if num_merged:
        duration_ticks = np.maximum.reduceat(duration_ticks, first)
        velocity = np.maximum.reduceat(velocity, first)
        voice, onset_steps = voice[first], onset_steps[first]
    return (voice, onset_steps, duration_ticks, velocity), num_merged


def _durations(
    voice: np.ndarray, onset_steps: np.ndarray, duration_steps: np.ndarray
) -> tuple[np.ndarray, int, int]:
    """Nearest table entries that end by the next onset of the same voice.

    Args:
        voice: (N,) ascending; notes of one voice ascending by onset.
        onset_steps: (N,) int64.
        duration_steps: (N,) float64, as played.

    Returns:
        (N,) int32 entries of DURATION_STEPS, how many were cut, how many capped.

    >>> _durations(np.array([7, 7, 8]), np.array([0, 10, 0]), np.array([12.0, 2000.0, 0.2]))
    (array([ 10, 768,   1], dtype=int32), 1, 1)
    """
    index = nearest_index(duration_steps, DURATION_STEPS)
    num_capped = int(np.count_nonzero(duration_steps > DURATION_STEPS[-1]))
    gap = np.full(len(voice), DURATION_STEPS[-1], np.int64)
    same_voice = voice[1:] == voice[:-1]
    gap[:-1][same_voice] = np.diff(onset_steps)[same_voice]
    longest = np.searchsorted(DURATION_STEPS, gap, side="right") - 1
    num_cut = int(np.count_nonzero(longest < index))
    return DURATION_STEPS[np.minimum(index, longest)], num_cut, num_capped


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
    line_quarters = bar_start_steps / STEPS_PER_QUARTER
    if len(tempos) == 0:
        return np.full(len(line_quarters) - 1, DEFAULT_TEMPO_BPM), 0
    change_quarters = tempos.onset_ticks / ticks_per_quarter
    bpm = tempos.bpm
    if change_quarters[0] > 0:
        change_quarters = np.concatenate([[0.0], change_quarters])
        bpm = np.concatenate([[DEFAULT_TEMPO_BPM], bpm])
    # The clock is a broken line through the changes; one more point carries it past the end.
    end = max(change_quarters[-1], line_quarters[-1]) + 1.0
    knots = np.append(change_quarters, end)
    clock = np.zeros(len(knots))
    np.cumsum(np.diff(knots) * _SECONDS_PER_MINUTE / bpm, out=clock[1:])
    seconds = np.diff(np.interp(line_quarters, knots, clock))
    inside = ~np.isin(_to_steps(tempos.onset_ticks, ticks_per_quarter), bar_start_steps)
    inside &= tempos.onset_ticks < line_quarters[-1] * ticks_per_quarter
    return (
        np.diff(line_quarters) * _SECONDS_PER_MINUTE / seconds,
        int(np.count_nonzero(inside)),
    )
