"""What is measured of chords and keys, from the chord of each bar and the key of a piece."""

import math

import numpy as np

from meloformer.evaluation.statistics import entropy
from meloformer.midi.harmony import CHORD_INTERVALS, NO_CHORD

_NUM_QUALITIES = len(CHORD_INTERVALS)
# (84, 12) bool: pitch classes of each chord, root * 7 + quality.
_CHORD_NOTES = np.array(
    [
        [(note - root) % 12 in intervals for note in range(12)]
        for root in range(12)
        for intervals in CHORD_INTERVALS
    ]
)
# Semitones above the tonic; minor with both sevenths, as its dominant wants the raised one.
_OF_MAJOR, _OF_MINOR = (0, 2, 4, 5, 7, 9, 11), (0, 2, 3, 5, 7, 8, 10, 11)
# (24, 12) bool: pitch classes of each key, 0..11 major, 12..23 minor.
_KEY_NOTES = np.array(
    [
        [(note - tonic) % 12 in scale for note in range(12)]
        for scale in (_OF_MAJOR, _OF_MINOR)
        for tonic in range(12)
    ]
)
NUM_MAJOR_KEYS = 12


def chord_bars(chord_B: np.ndarray, sounds_B: np.ndarray) -> float:
    """Share of the bars that a chord fits, of those in which a pitched note sounds.

    Args:
        chord_B: of each bar, as `bar_chords` gives them.
        sounds_B: bool, whether a pitched note sounds there.
    """
    return float((chord_B[sounds_B] != NO_CHORD).mean()) if sounds_B.any() else math.nan


def chord_changes(chord_B: np.ndarray) -> float:
    """Share of neighbouring bars whose chords differ, of those that both have one."""
    both = (chord_B[1:] != NO_CHORD) & (chord_B[:-1] != NO_CHORD)
    return float((chord_B[1:] != chord_B[:-1])[both].mean()) if both.any() else math.nan


def chord_entropy(chord_B: np.ndarray) -> float:
    """Entropy of how many bars have each chord, in bits: 0 where it is always the same."""
    return entropy(np.bincount(chord_B[chord_B != NO_CHORD], minlength=NO_CHORD))


def chords_in_key(chord_B: np.ndarray, key: int | None) -> float:
    """Share of the chords all of whose notes lie in the key.

    Args:
        chord_B: of each bar.
        key: of the piece, 0..11 major, 12..23 minor (which has both sevenths).
    """
    chords = chord_B[chord_B != NO_CHORD]
    if key is None or not len(chords):
        return math.nan
    is_inside = (~_CHORD_NOTES | _KEY_NOTES[key]).all(axis=1)
    return float(is_inside[chords].mean())


def is_major(key: int | None) -> float:
    """1 of a piece in a major key, 0 in a minor one."""
    return math.nan if key is None else float(key < NUM_MAJOR_KEYS)
