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
from meloformer.midi.recover import is_plain, recover_midi

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
    score, recovered = _parse(data)
    tempos = score.tempos.numpy()
    metres = score.time_signatures.numpy()
    # No time at all, which some files state, is as impossible as the shortest that can be stated.
    bpm = _MICROSECONDS_PER_MINUTE / np.maximum(tempos["mspq"], 1)
    return build_piece(
        ticks_per_quarter=score.ticks_per_quarter,
        tracks=[_track(track) for track in score.tracks],
        tempos=(tempos["time"], bpm),
        time_signatures=(metres["time"], metres["numerator"], metres["denominator"]),
        recovered=recovered,
    )


def _parse(data: bytes) -> tuple[core.ScoreTick, str]:
    """The bytes as they are or, where they are wrapped or damaged, mended; and what was mended."""
    if len(data) > limits.MAX_FILE_BYTES:
        raise MidiError("file_too_big", f"{len(data)} bytes; allowed {limits.MAX_FILE_BYTES}")
    if not is_plain(data):
        mended, recovered = recover_midi(data)
        return _score(mended), recovered
    try:
        return _score(data), ""
    except MidiError:
        mended, recovered = recover_midi(data)
        return _score(mended), recovered or "events"


def _score(data: bytes) -> core.ScoreTick:
    try:
        return core.ScoreTick.from_midi(data)
    except MemoryError:
        raise
    except Exception as error:  # the parser raises many unrelated classes, all mean this
        raise MidiError("unreadable", f"{type(error).__name__}: {error}") from error


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
    pedal, num_controllers = NO_PEDAL, len(track.controls)
    if num_controllers:
        controls = track.controls.numpy()
        at = np.flatnonzero(controls["number"] == SUSTAIN_PEDAL)
        num_controllers -= len(at)
        if len(at):
            # Not `track.pedals`: from the second track on its starts can be another track's.
            pedal = build_pedal(controls["time"][at], controls["value"][at])
    return build_track(
        program=track.program,
        is_drum=track.is_drum,
        name=track.name,
        columns=(notes["time"], notes["duration"], notes["pitch"], notes["velocity"]),
        pedal=pedal,
        num_bends=len(track.pitch_bends),
        num_controllers=num_controllers,
    )
