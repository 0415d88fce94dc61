"""Chords bar by bar and the key of a piece, from the notes alone, in vectorised passes.

Both turn with the music: transposing every note turns every root and the tonic by as much. Ties
are therefore broken relative to the bass, never by the name of a root.
"""

from __future__ import annotations

import numpy as np

from meloformer.midi.grid import DRUMS
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

# Cosine of a bar's pitch classes with a chord's; one pitch class alone, or all twelve, stay below.
_LEAST_FIT = 0.6
# A chord in root position beats another that fits as well but for this much.
_ROOT_IN_BASS_BONUS = 0.05

# Source: Krumhansl and Kessler 1982, probe-tone profiles; semitones above the tonic.
_MAJOR_PROFILE = (6.35, 2.23, 3.48, 2.33, 4.38, 4.09, 2.52, 5.19, 2.39, 3.66, 2.29, 2.88)
_MINOR_PROFILE = (6.33, 2.68, 3.52, 5.38, 2.60, 3.53, 2.54, 4.75, 3.98, 2.69, 3.34, 3.17)

# Scores closer than this are one score: sums in another order differ in the last bits.
_SCORE_DECIMALS = 9
_TIE_BREAK = 1e-8


def bar_chords(quantised: QuantisedPiece) -> np.ndarray:
    """Best fitting chord of what sounds in each bar, held notes included, drums excluded.

    Args:
        quantised: the piece.

    Returns:
        (num_bars,) int32: root * 7 + quality, or 84 where no chord fits.
    """
    bar, pitch, steps = _sounding_by_bar(quantised)
    num_bars = quantised.num_bars
    chroma = _chroma(bar, pitch, steps, num_bars)
    bass = np.full(num_bars, 127 + 12)
    np.minimum.at(bass, bar, pitch)
    bass %= 12

    loudness = np.linalg.norm(chroma, axis=1, keepdims=True)
    fit = np.round(chroma @ _CHORD_TEMPLATES.T / np.maximum(loudness, 1.0), _SCORE_DECIMALS)
    above_bass = (_CHORD_ROOTS[None, :] - bass[:, None]) % 12
    score = fit + _ROOT_IN_BASS_BONUS * (above_bass == 0) - _TIE_BREAK * above_bass
    # Among equals the lowest quality, and a quality has the same rank under every root.
    quality_first = score.reshape(num_bars, 12, -1)
    best_of_quality = quality_first.max(axis=1)
    quality = best_of_quality.argmax(axis=1)
    bars = np.arange(num_bars)
    root = quality_first[bars, :, quality].argmax(axis=1)
    chord = root * len(CHORD_INTERVALS) + quality
    return np.where(fit[bars, chord] >= _LEAST_FIT, chord, NO_CHORD).astype(np.int32)


def estimate_key(quantised: QuantisedPiece) -> int | None:
    """Key by correlation with the Krumhansl-Kessler profiles, notes weighted by duration.

    Args:
        quantised: the piece.

    Returns:
        0..11 major by tonic, 12..23 minor by tonic; None where only drums play.
    """
    pitched = quantised.instrument != DRUMS
    if not pitched.any():
        return None
    pitch = quantised.pitch[pitched]
    chroma = np.bincount(pitch % 12, quantised.duration_steps[pitched], minlength=12)
    spread = np.linalg.norm(chroma - chroma.mean())
    fit = np.round(_KEY_TEMPLATES @ chroma / np.maximum(spread, 1.0), _SCORE_DECIMALS)
    # The lowest note of the last onset: where all else is equal, a piece ends on its tonic.
    onset = quantised.bar_start_steps[quantised.bar[pitched]] + quantised.onset_steps[pitched]
    final = int(pitch[onset == onset.max()].min())
    return int(np.argmax(fit - _TIE_BREAK * ((np.arange(24) - final) % 12)))


def _sounding_by_bar(quantised: QuantisedPiece) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Pitched notes cut at the bar lines that they cross.

    Returns:
        bar, pitch and sounding steps, each (num_cut_notes,); what sounds on after the last bar
        is left out.
    """
    pitched = quantised.instrument != DRUMS
    starts = quantised.bar_start_steps
    first_bar, pitch = quantised.bar[pitched], quantised.pitch[pitched]
    onset = starts[first_bar] + quantised.onset_steps[pitched]
    end = np.minimum(onset + quantised.duration_steps[pitched], starts[-1])
    num_bars = np.searchsorted(starts, end, side="left") - first_bar
    note = np.repeat(np.arange(len(pitch)), num_bars)
    # 0, 1, 2, ... within each note: the running index less the index of the note's first part.
    nth = np.arange(len(note)) - np.repeat(np.cumsum(num_bars) - num_bars, num_bars)
    bar = first_bar[note] + nth
    steps = np.minimum(end[note], starts[bar + 1]) - np.maximum(onset[note], starts[bar])
    return bar, pitch[note], steps


def _chroma(bar: np.ndarray, pitch: np.ndarray, steps: np.ndarray, num_bars: int) -> np.ndarray:
    """(num_bars, 12) float64 sounding steps of each pitch class."""
    sums = np.bincount(bar * 12 + pitch % 12, steps, minlength=num_bars * 12)
    return sums.reshape(num_bars, 12)


def _chord_templates() -> np.ndarray:
    """(84, 12) float64 rows of length 1, root * 7 + quality."""
    rows = np.zeros((12, len(CHORD_INTERVALS), 12))
    for root in range(12):
        for quality, intervals in enumerate(CHORD_INTERVALS):
            rows[root, quality, [(root + i) % 12 for i in intervals]] = len(intervals) ** -0.5
    return rows.reshape(NUM_CHORDS, 12)


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


_CHORD_TEMPLATES = _chord_templates()
_CHORD_ROOTS = np.arange(NUM_CHORDS) // len(CHORD_INTERVALS)
_KEY_TEMPLATES = _key_templates()
