"""Chords bar by bar and the key of a piece, from the notes alone, in vectorised passes.

Both turn with the music: transposing every note turns every root and the tonic by as much. Ties
are therefore broken relative to the bass, never by the name of a root.
"""

from __future__ import annotations

import numpy as np

from meloformer.midi.joined import JoinedPieces
from meloformer.midi.quantised import QuantisedPiece

# Semitones above the root: maj, min, dim, aug, maj7, min7, dom7.
CHORD_INTERVALS = (
    (0, 4, 7),
    (0, 3, 7),
    (0, 3, 6),
    (0, 4, 8),
    (0, 4, 7, 11),
    (0, 3, 7, 10),
    (0, 4, 7, 10),
)
NUM_CHORDS = 12 * len(CHORD_INTERVALS)
NO_CHORD = NUM_CHORDS

# Fits are whole numbers of this unit: sums in another order differ in the last bits, and scores
# that are equal must be found equal on every machine.
_FIT_UNIT = 1e-9
# Cosine of a bar's pitch classes with a chord's; one pitch class alone, or all twelve, stay below.
_LEAST_FIT = round(0.6 / _FIT_UNIT)
# A chord in root position beats another that fits as well but for this much.
_ROOT_IN_BASS_BONUS = round(0.05 / _FIT_UNIT)
# What each semitone above the bass, or above the final of a piece, takes away: it decides ties.
_TIE_BREAK = round(1e-8 / _FIT_UNIT)

# Source: Krumhansl and Kessler 1982, probe-tone profiles; semitones above the tonic.
_MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)


def bar_chords(quantised: QuantisedPiece) -> np.ndarray:
    """Best fitting chord of what sounds in each bar, held notes included, drums excluded.

    Args:
        quantised: the piece.

    Returns:
        (num_bars,) int32: root * 7 + quality, or 84 where no chord fits.
    """
    return joined_bar_chords(JoinedPieces.of(quantised))


def joined_bar_chords(joined: JoinedPieces) -> np.ndarray:
    """`bar_chords` of several pieces, one after the other.

    Returns:
        (num_bars,) int32, of all bars.
    """
    bar, pitch, steps = _sounding_by_bar(joined)
    num_bars = joined.music.num_bars
    chroma = np.bincount(bar * 12 + _PITCH_CLASS.take(pitch), steps, minlength=num_bars * 12)
    chroma = chroma.reshape(num_bars, 12)
    bass = np.full(num_bars, 127, pitch.dtype)
    np.minimum.at(bass, bar, pitch)

    # Silence fits nothing, whatever it is divided by.
    loudness = np.sqrt(np.maximum((chroma * chroma).sum(axis=1, keepdims=True), 1.0))
    score = chroma @ _CHORD_TEMPLATES
    score /= loudness * _FIT_UNIT
    np.rint(score, out=score)
    place = _PLACE_OF_BASS[_PITCH_CLASS[bass]]
    score += place
    # Among equals the lowest quality, which has the same rank under every root.
    best = score.argmax(axis=1)
    at_best = np.arange(num_bars), best
    fits = score[at_best] - place[at_best] >= _LEAST_FIT
    return np.where(fits, _CHORD_OF_TEMPLATE[best], np.int32(NO_CHORD))


def estimate_key(quantised: QuantisedPiece) -> int | None:
    """Key by correlation with the Krumhansl-Kessler profiles, notes weighted by duration.

    Args:
        quantised: the piece.

    Returns:
        0..11 major by tonic, 12..23 minor by tonic; None where only drums play.
    """
    return estimate_keys(JoinedPieces.of(quantised))[0]


def estimate_keys(joined: JoinedPieces) -> list[int | None]:
    """`estimate_key` of each of several pieces."""
    music = joined.music
    melodic = music.melodic
    pitch, onset = music.pitch[melodic], music.start_steps[melodic]
    piece = joined.piece_of_note[melodic]
    keys: list[int | None] = [None] * len(joined)
    if len(pitch) == 0:
        return keys
    chroma = np.bincount(
        piece * 12 + _PITCH_CLASS.take(pitch),
        music.duration_steps[melodic],
        minlength=12 * len(joined),
    ).reshape(-1, 12)
    chroma -= chroma.mean(axis=1, keepdims=True)
    spread = np.maximum(np.sqrt((chroma * chroma).sum(axis=1, keepdims=True)), 1.0)
    fit = np.rint(chroma @ _KEY_TEMPLATES.T / (spread * _FIT_UNIT))
    # The lowest note of the last onset: where all else is equal, a piece ends on its tonic.
    first = np.flatnonzero(np.concatenate([[True], piece[1:] != piece[:-1]]))
    num_melodic = np.diff(first, append=len(piece))
    is_last = onset == np.maximum.reduceat(onset, first).repeat(num_melodic)
    final = _PITCH_CLASS[np.minimum.reduceat(np.where(is_last, pitch, 127), first)]
    melodic_piece = piece[first]
    best = (fit[melodic_piece] - _ABOVE_FINAL[final]).argmax(axis=1)
    for index, key in zip(melodic_piece.tolist(), best.tolist(), strict=True):
        keys[index] = key
    return keys


def _sounding_by_bar(joined: JoinedPieces) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitched notes cut at the bar lines that they cross.

    Returns:
        bar, pitch and sounding steps, each (num_cut_notes,) int32; what sounds on after the last
        bar of a piece is left out.
    """
    music = joined.music
    melodic = music.melodic
    bar, pitch, onset = music.bar[melodic], music.pitch[melodic], music.start_steps[melodic]
    end = onset + music.duration_steps[melodic]
    starts = music.bar_start_steps.astype(np.int32)
    next_line = starts[1:].take(bar)
    steps = np.minimum(end, next_line) - onset

    held = np.flatnonzero(end > next_line)
    first = bar[held] + 1
    end = np.minimum(end[held], joined.end_steps[joined.piece_of_note[melodic][held]])
    num_bars = starts.searchsorted(end).astype(np.int32) - first
    # 1, 2, 3, ... bars on: the running index less the index at which the note's bars begin.
    later = (first - num_bars.cumsum(dtype=np.int32) + num_bars).repeat(num_bars)
    later += np.arange(len(later), dtype=np.int32)
    later_steps = np.minimum(end.repeat(num_bars), starts[1:][later]) - starts[later]
    return (
        np.concatenate([bar, later]),
        np.concatenate([pitch, pitch[held].repeat(num_bars)]),
        np.concatenate([steps, later_steps]),
    )


def _chord_templates() -> np.ndarray:
    """(12, 84) float64 columns of length 1, quality * 12 + root."""
    columns = np.zeros((12, len(CHORD_INTERVALS), 12))
    for quality, intervals in enumerate(CHORD_INTERVALS):
        for root in range(12):
            columns[[(root + i) % 12 for i in intervals], quality, root] = len(intervals) ** -0.5
    return columns.reshape(12, NUM_CHORDS)


def _place_of_bass() -> np.ndarray:
    """(12, 84) what a chord gains or loses over a bass: the lower its root lies, the better."""
    above_bass = (np.arange(12)[None, :] - np.arange(12)[:, None]) % 12
    gain = _ROOT_IN_BASS_BONUS * (above_bass == 0) - _TIE_BREAK * above_bass
    return np.tile(gain, len(CHORD_INTERVALS)).astype(np.float64)


def _key_templates() -> np.ndarray:
    """(24, 12) float64 profiles turned to every tonic, mean 0 and length 1."""
    rows = np.array(
        [
            np.roll(profile, tonic)
            for profile in (_MAJOR_PROFILE, _MINOR_PROFILE)
            for tonic in range(12)
        ]
    )
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


_PITCH_CLASS = np.arange(128, dtype=np.int32) % 12
_CHORD_TEMPLATES = _chord_templates()
_CHORD_OF_TEMPLATE = np.arange(NUM_CHORDS, dtype=np.int32).reshape(12, -1).T.ravel()
_PLACE_OF_BASS = _place_of_bass()
_KEY_TEMPLATES = _key_templates()
# (12, 24) what a key loses over the final of a piece: the more, the higher its tonic lies.
_ABOVE_FINAL = _TIE_BREAK * ((np.arange(24)[None, :] - np.arange(12)[:, None]) % 12)
