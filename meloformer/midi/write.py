"""Piece -> MIDI bytes, through symusic, which keeps overlapping notes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from symusic import core

from meloformer.midi.piece import SUSTAIN_PEDAL, Piece, Track


def midi_bytes(piece: Piece) -> bytes:
    """A MIDI file of format 1, one track per `Track`; see `to_score`."""
    return to_score(piece).dumps_midi()


def to_score(piece: Piece) -> core.ScoreTick:
    """What symusic makes a file of, and what tokenizers of others read.

    Drum tracks come last: symusic deals the melodic channels out by track number, so up to
    fifteen melodic tracks get a channel each. From the sixteenth on channels are shared, and
    every track states its own program, which readers keep apart track by track.
    """
    score = core.ScoreTick(piece.ticks_per_quarter)
    for track in sorted(piece.tracks, key=lambda track: track.is_drum):
        score.tracks.append(_symusic_track(track))
    tempos, metres = piece.tempos, piece.time_signatures
    for ticks, bpm in zip(tempos.onset_ticks.tolist(), tempos.bpm.tolist(), strict=True):
        score.tempos.append(core.TempoTick(ticks, bpm))
    metre_columns = (metres.onset_ticks, metres.numerator, metres.denominator)
    for row in zip(*(column.tolist() for column in metre_columns), strict=True):
        score.time_signatures.append(core.TimeSignatureTick(*row))
    return score


def write_midi(piece: Piece, path: Path | str) -> None:
    """Write `midi_bytes(piece)` to `path`."""
    Path(path).write_bytes(midi_bytes(piece))


def _symusic_track(track: Track) -> core.TrackTick:
    notes, pedal = track.notes, track.pedal
    out = core.TrackTick(track.name, track.program, track.is_drum)
    out.notes = core.NoteTickList.from_numpy(
        notes.onset_ticks.astype(np.int32),
        notes.duration_ticks.astype(np.int32),
        notes.pitch.astype(np.int8),
        notes.velocity.astype(np.int8),
    )
    # symusic writes the pedal from its controller events, not from its list of intervals.
    for start, end in zip(pedal.start_ticks.tolist(), pedal.end_ticks.tolist(), strict=True):
        out.controls.append(core.ControlChangeTick(start, SUSTAIN_PEDAL, 127))
        out.controls.append(core.ControlChangeTick(end, SUSTAIN_PEDAL, 0))
    return out
