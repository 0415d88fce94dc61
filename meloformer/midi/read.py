"""MIDI bytes -> Piece, through symusic in tick units."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from symusic import core

from meloformer.errors import MidiError
from meloformer.midi import limits
from meloformer.midi.piece import (
    NO_PEDAL,
    SUSTAIN_PEDAL,
    Piece,
    Track,
    build_pedal,
    build_piece,
    build_track,
)

_MICROSECONDS_PER_MINUTE = 60_000_000


def read_midi(source: bytes | Path) -> Piece:
    """Read a MIDI file.

    Args:
        source: the bytes of a file, or its path.

    Raises:
        MidiError: the file cannot be read, holds no note, or holds an impossible value; `reason`
            says which.
    """
    data = source if isinstance(source, bytes) else _file_bytes(Path(source))
    try:
        score = core.ScoreTick.from_midi(data)
    except Exception as error:  # the parser raises many unrelated classes, all mean this
        raise MidiError("unreadable", f"{type(error).__name__}: {error}") from error
    tempos = score.tempos.numpy()
    metres = score.time_signatures.numpy()
    with np.errstate(divide="ignore"):
        bpm = _MICROSECONDS_PER_MINUTE / tempos["mspq"].astype(np.float64)
    return build_piece(
        ticks_per_quarter=score.ticks_per_quarter,
        tracks=[_track(track) for track in score.tracks],
        tempos=(tempos["time"], bpm),
        time_signatures=(metres["time"], metres["numerator"], metres["denominator"]),
    )


def _file_bytes(path: Path) -> bytes:
    try:
        num_bytes = path.stat().st_size
        if num_bytes > limits.MAX_FILE_BYTES:
            raise MidiError("file_too_big", f"{num_bytes} bytes; allowed {limits.MAX_FILE_BYTES}")
        return path.read_bytes()
    except OSError as error:
        raise MidiError("unreadable", f"{path}: {error.strerror}") from error


def _track(track: core.TrackTick) -> Track:
    notes = track.notes.numpy()
    pedal, num_pedal_events = NO_PEDAL, 0
    if len(track.controls):
        controls = track.controls.numpy()
        is_pedal = controls["number"] == SUSTAIN_PEDAL
        num_pedal_events = int(np.count_nonzero(is_pedal))
        # Not `track.pedals`: from the second track on its starts can be another track's.
        pedal = build_pedal(controls["time"][is_pedal], controls["value"][is_pedal])
    return build_track(
        program=track.program,
        is_drum=track.is_drum,
        name=track.name,
        columns=(notes["time"], notes["duration"], notes["pitch"], notes["velocity"]),
        pedal=pedal,
        num_bends=len(track.pitch_bends),
        num_controllers=len(track.controls) - num_pedal_events,
    )
