"""Purpose-made near copies of real pieces: what people do to a file before they pass it on."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from meloformer.errors import MidiError
from meloformer.midi.piece import Notes, Piece, Tempos, Track, build_piece

SHARE_CHANGED = 0.05
_MAX_TRANSPOSITION = 11
_TEMPO_FACTORS = (0.7, 0.8, 1.25, 1.5)
_MAX_EIGHTHS_MOVED = 4


def transposed(piece: Piece, random: np.random.Generator) -> Piece | None:
    """All but the drums higher or lower, by less than an octave; None where there is no room."""
    pitches = [t.notes.pitch for t in piece.tracks if not t.is_drum and len(t.notes)]
    if not pitches:
        return None
    lowest, highest = min(p.min() for p in pitches), max(p.max() for p in pitches)
    steps = np.arange(-_MAX_TRANSPOSITION, _MAX_TRANSPOSITION + 1)
    steps = steps[(steps != 0) & (lowest + steps >= 0) & (highest + steps <= 127)]
    if len(steps) == 0:
        return None
    step = np.int32(random.choice(steps))
    return replace(
        piece,
        tracks=tuple(
            track
            if track.is_drum
            else replace(track, notes=replace(track.notes, pitch=track.notes.pitch + step))
            for track in piece.tracks
        ),
    )


def other_tempo(piece: Piece, random: np.random.Generator) -> Piece | None:
    """All tempos faster or slower by one factor."""
    tempos = piece.tempos
    if len(tempos) == 0:
        tempos = Tempos(onset_ticks=np.zeros(1, np.int32), bpm=np.array([120.0]))
    return replace(piece, tempos=replace(tempos, bpm=tempos.bpm * random.choice(_TEMPO_FACTORS)))


def note_values_doubled(piece: Piece, random: np.random.Generator) -> Piece | None:
    """Everything written twice as long, the metre as before; None where ticks are too coarse."""
    if piece.ticks_per_quarter % 2:
        return None
    return _finer(piece, piece.ticks_per_quarter // 2)


def note_values_halved(piece: Piece, random: np.random.Generator) -> Piece | None:
    """Everything written half as long, the metre as before; None where ticks are too fine."""
    return _finer(piece, piece.ticks_per_quarter * 2)


def track_dropped(piece: Piece, random: np.random.Generator) -> Piece | None:
    """Without one of its tracks, any of them; None where there is only one."""
    tracks = [track for track in piece.tracks if len(track.notes)]
    if len(tracks) < 2:
        return None
    del tracks[random.integers(len(tracks))]
    return _with_tracks(piece, tracks)


def notes_changed(piece: Piece, random: np.random.Generator) -> Piece | None:
    """Of SHARE_CHANGED of all notes, a third each other pitches, moved, and removed."""
    num_notes = piece.num_notes
    change = np.full(num_notes, -1)
    chosen = random.choice(num_notes, int(np.ceil(num_notes * SHARE_CHANGED)), replace=False)
    change[chosen] = random.integers(0, 3, len(chosen))
    eighth = max(piece.ticks_per_quarter // 2, 1)
    tracks, start = [], 0
    for track in piece.tracks:
        notes, mine = track.notes, change[start : start + len(track.notes)]
        start += len(notes)
        sign = random.choice([-1, 1], len(notes))
        other = notes.pitch + sign * random.integers(1, 13, len(notes))
        other = np.where((other < 0) | (other > 127), 2 * notes.pitch - other, other)
        moved = notes.onset_ticks + sign * random.integers(1, _MAX_EIGHTHS_MOVED + 1) * eighth
        pitch = np.where(mine == 0, other, notes.pitch).astype(np.int32)
        onset = np.where(mine == 1, np.maximum(moved, 0), notes.onset_ticks).astype(np.int32)
        kept = mine != 2
        tracks.append(
            replace(
                track,
                notes=Notes(
                    onset_ticks=onset[kept],
                    duration_ticks=notes.duration_ticks[kept],
                    pitch=pitch[kept],
                    velocity=notes.velocity[kept],
                ),
            )
        )
    return _with_tracks(piece, tracks)


EDITS: dict[str, Callable[[Piece, np.random.Generator], Piece | None]] = {
    "transposed": transposed,
    "other tempo": other_tempo,
    "track dropped": track_dropped,
    "5 % of notes changed": notes_changed,
    "note values doubled": note_values_doubled,
    "note values halved": note_values_halved,
}


def _finer(piece: Piece, ticks_per_quarter: int) -> Piece | None:
    """The same ticks, read at another resolution."""
    try:
        return replace(piece, ticks_per_quarter=ticks_per_quarter)
    except MidiError:
        return None


def _with_tracks(piece: Piece, tracks: list[Track]) -> Piece | None:
    """The piece with other tracks; None without a note."""
    if not any(len(track.notes) for track in tracks):
        return None
    tempos, metres = piece.tempos, piece.time_signatures
    return build_piece(
        ticks_per_quarter=piece.ticks_per_quarter,
        tracks=tracks,
        tempos=(tempos.onset_ticks, tempos.bpm),
        time_signatures=(metres.onset_ticks, metres.numerator, metres.denominator),
    )
