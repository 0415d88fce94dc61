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
    Notes,
    Pedal,
    Piece,
    Track,
    build_pedal,
    build_piece,
)
from meloformer.midi.recover import is_plain, recover_midi

_MICROSECONDS_PER_MINUTE = 60_000_000
_NOTHING = np.zeros(0, np.int32)


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
    tracks, notes = _tracks(score)
    return build_piece(
        ticks_per_quarter=score.ticks_per_quarter,
        tracks=tracks,
        tempos=(tempos["time"], bpm),
        time_signatures=(metres["time"], metres["numerator"], metres["denominator"]),
        recovered=recovered,
        joined_notes=notes,
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


def _tracks(score: core.ScoreTick) -> tuple[list[Track], Notes]:
    """Tracks, whose notes are parts of the columns that hold the notes of all."""
    parsed = list(score.tracks)
    columns = [track.notes.numpy() for track in parsed]

    def joined(name: str) -> np.ndarray:
        return np.concatenate([_NOTHING, *(of_track[name] for of_track in columns)])

    duration = joined("duration")
    notes = Notes(
        onset_ticks=joined("time"),
        duration_ticks=duration if duration.all() else duration + (duration == 0),
        pitch=joined("pitch"),
        velocity=joined("velocity"),
    )
    tracks: list[Track] = []
    start = 0
    for track, of_track in zip(parsed, columns, strict=True):
        own = slice(start, start + len(of_track["time"]))
        pedal, num_pedal_events = _pedal(track)
        tracks.append(
            Track(
                program=track.program,
                is_drum=track.is_drum,
                name=track.name,
                notes=Notes(
                    onset_ticks=notes.onset_ticks[own],
                    duration_ticks=notes.duration_ticks[own],
                    pitch=notes.pitch[own],
                    velocity=notes.velocity[own],
                ),
                pedal=pedal,
                num_bends=len(track.pitch_bends),
                num_controllers=len(track.controls) - num_pedal_events,
                num_zero_length=0
                if notes.duration_ticks is duration
                else int(np.count_nonzero(duration[own] == 0)),
            )
        )
        start = own.stop
    return tracks, notes


def _pedal(track: core.TrackTick) -> tuple[Pedal, int]:
    """When the sustain pedal is down, and how many events say so."""
    if not len(track.controls):
        return NO_PEDAL, 0
    # Not `track.pedals`: from the second track on its starts can be another track's.
    controls = track.controls.numpy()
    at = np.flatnonzero(controls["number"] == SUSTAIN_PEDAL)
    if not len(at):
        return NO_PEDAL, 0
    return build_pedal(controls["time"][at], controls["value"][at]), len(at)
