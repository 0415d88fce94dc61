"""The key of a piece by a second opinion: whoever labelled the captions does not judge them too.

The labeller of midi/harmony.py correlates with how well tones were found to fit a key by
listeners; this one with how often composers wrote them, which takes the dominant for as heavy as
the tonic and hears minor keys by their raised seventh.
"""

import numpy as np

from meloformer.midi.grid import DRUMS
from meloformer.midi.quantised import QuantisedPiece

# Percent of the tones of classical music that lie so many semitones above the tonic.
# Source: Budge 1943, A study of chord frequencies; as weights for keys: Bellman 2005,
# About the determination of key of a musical excerpt.
_MAJOR = (16.80, 0.86, 12.95, 1.41, 13.49, 11.93, 1.25, 20.28, 1.80, 8.04, 0.62, 10.57)
_MINOR = (18.16, 0.69, 12.99, 13.34, 1.07, 11.15, 1.38, 21.07, 7.49, 1.53, 0.92, 10.21)

# Fits that differ by less are one: sums in another order must not decide.
_DECIMALS = 9
# What each semitone above the last bass note takes away: it decides ties, whatever the key.
_TIE_BREAK = 1e-8


def second_key(music: QuantisedPiece) -> int | None:
    """Key by correlation with the Bellman-Budge profiles, notes weighted by duration.

    Args:
        music: a piece or a part of one.

    Returns:
        0..11 major by tonic, 12..23 minor by tonic; None where only drums play.
    """
    is_melodic = music.instrument != DRUMS
    if not is_melodic.any():
        return None
    pitch, start = music.pitch[is_melodic], music.start_steps[is_melodic]
    chroma = np.bincount(pitch % 12, music.duration_steps[is_melodic], minlength=12)
    chroma -= chroma.mean()
    spread = max(float(np.linalg.norm(chroma)), 1.0)
    fit = np.round(_PROFILES @ chroma / spread, _DECIMALS)
    final = int(pitch[start == start.max()].min()) % 12
    return int((fit - _TIE_BREAK * ((np.arange(24) - final) % 12)).argmax())


def relative_key(key: int) -> int:
    """The key of the other mode with the same signature.

    >>> relative_key(0), relative_key(21)  # C major, A minor
    (21, 0)
    """
    mode, tonic = divmod(key, 12)
    return (tonic + 3) % 12 if mode else 12 + (tonic + 9) % 12


def _profiles() -> np.ndarray:
    """(24, 12) float64, turned to every tonic, mean 0 and length 1."""
    rows = np.array([np.roll(row, tonic) for row in (_MAJOR, _MINOR) for tonic in range(12)])
    rows -= rows.mean(axis=1, keepdims=True)
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


_PROFILES = _profiles()
