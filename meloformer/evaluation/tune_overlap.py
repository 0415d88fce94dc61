"""Are two pieces versions of one tune? An answer that knows nothing of figures or hashes."""

import numpy as np

from meloformer.midi.grid import STEPS_PER_QUARTER
from meloformer.midi.piece import Piece

# Versions of one tune coincide in as much; few pairs drawn at random do.
ONE_TUNE = 0.45

_WINDOW_NOTES = 128
_MAX_WINDOWS = 12
_MAX_NOTES = 20_000


def tune_overlap(first: Piece, second: Piece) -> float:
    """Share of a passage that coincides with the other piece, shifted as a whole.

    Passages of the shorter piece are laid over the longer one, in each key and at each time, and
    with note values half and twice as long; of the best place, the notes that fall on a note of
    equal pitch and onset are counted.

    Returns:
        0..1, of the best passage; 0 where a piece has too few notes to tell.
    """
    doubled = 2 * STEPS_PER_QUARTER
    return max(
        _overlap(_melodic(first, STEPS_PER_QUARTER), _melodic(second, STEPS_PER_QUARTER)),
        _overlap(_melodic(first, doubled), _melodic(second, STEPS_PER_QUARTER)),
        _overlap(_melodic(first, STEPS_PER_QUARTER), _melodic(second, doubled)),
    )


def _overlap(first: np.ndarray, second: np.ndarray) -> float:
    short, long = sorted((first, second), key=len)
    if len(short) < _WINDOW_NOTES // 8:
        return 0.0
    starts = np.arange(0, max(len(short) - _WINDOW_NOTES, 0) + 1, _WINDOW_NOTES // 2)
    if len(starts) > _MAX_WINDOWS:
        starts = starts[np.linspace(0, len(starts) - 1, _MAX_WINDOWS).astype(int)]
    best = 0.0
    for start in starts:
        passage = short[start : start + _WINDOW_NOTES]
        # One number for key and time together: a shift of both is a difference.
        shifts = np.sort((long[None, :] - passage[:, None]).ravel())
        edges = np.flatnonzero(shifts[1:] != shifts[:-1])
        runs = np.diff(edges, prepend=-1, append=len(shifts) - 1)
        best = max(best, int(runs.max()) / len(passage))
    return best


def _melodic(piece: Piece, steps_per_quarter: int) -> np.ndarray:
    """(N,) int64 onset in steps * 256 + pitch of all but the drums, ascending, each once."""
    notes = [track.notes for track in piece.tracks if not track.is_drum]
    if not notes:
        return np.zeros(0, np.int64)
    onset = np.concatenate([n.onset_ticks for n in notes]).astype(np.int64)
    onset = onset * steps_per_quarter // piece.ticks_per_quarter
    return np.unique(onset * 256 + np.concatenate([n.pitch for n in notes]))[:_MAX_NOTES]
