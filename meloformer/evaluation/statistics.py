"""What is measured of one piece on the grid: pitches, rhythm, texture, repetition.

Each is a pure function of the notes; nan is a piece of which there is nothing to say. Files are
rounded to the grid first, all alike, so that pieces of any origin are measured by one rule.

Source: Dong et al. 2020, MusPy, for pitch-class entropy, scale consistency, groove consistency and
polyphony; equal to its numbers where it defines them, which is in one metre throughout.
"""

import lzma
import math

import numpy as np

from meloformer.midi.grid import (
    DRUMS,
    DURATION_STEPS,
    MAX_BAR_STEPS,
    METRE_STEPS,
    STEPS_PER_QUARTER,
)
from meloformer.midi.quantised import QuantisedPiece

_MAJOR = (0, 2, 4, 5, 7, 9, 11)
# (12, 12) bool: the major scale on each tonic. A natural minor scale has the notes of one of them.
_SCALES = np.array([[(note - tonic) % 12 in _MAJOR for note in range(12)] for tonic in range(12)])

# Bytes of a note: instrument, onset (two), pitch, duration; no instrument is as high as the mark.
_NOTE_BYTES = 5
_BAR_MARK = 0xFF
_LEAST_DICTIONARY = 4096  # of the compressor


def pitch_class_entropy(music: QuantisedPiece) -> float:
    """Entropy of how often each pitch class is played, in bits: 0 of one alone, log2(12) at most.

    Drums have no pitch class.
    """
    return entropy(_pitch_classes(music))


def entropy(counts: np.ndarray) -> float:
    """Shannon entropy of a histogram in bits; nan of an empty one.

    >>> entropy(np.array([2, 2, 0]))
    1.0
    """
    shares = counts[counts > 0] / max(counts.sum(), 1)
    # Adding 0 makes the 0 of a single class a positive one.
    return float(-(shares * np.log2(shares)).sum()) + 0.0 if len(shares) else math.nan


def scale_consistency(music: QuantisedPiece) -> float:
    """Share of the notes that lie in one scale, of the major or minor scale that has the most."""
    counts = _pitch_classes(music)
    total = counts.sum()
    return float((_SCALES @ counts).max() / total) if total else math.nan


def _pitch_classes(music: QuantisedPiece) -> np.ndarray:
    """(12,) notes of each pitch class."""
    return np.bincount(music.pitch[music.melodic] % 12, minlength=12)


def groove_consistency(music: QuantisedPiece) -> float:
    """How alike the onsets of neighbouring bars are: 1 less the mean share of steps that differ.

    A step counts once, however many notes begin there, drums included. Bars are counted as far as
    the last note sounds, and one more where it ends on a bar line, as MusPy does. Neighbours of
    different length, of which MusPy knows none, are left out.
    """
    lengths = METRE_STEPS[music.bar_metre].astype(np.int64)
    beyond = int(ends(music).max(initial=0)) - int(music.bar_start_steps[-1])
    if beyond >= 0:
        lengths = np.append(lengths, np.repeat(lengths[-1], beyond // lengths[-1] + 1))
    places = np.unique(music.bar.astype(np.int64) * MAX_BAR_STEPS + music.onset_steps)
    onsets = np.bincount(places // MAX_BAR_STEPS, minlength=len(lengths))
    again = places[np.isin(places + MAX_BAR_STEPS, places, assume_unique=True)]
    common = np.bincount(again // MAX_BAR_STEPS, minlength=len(lengths))[:-1]
    alike = lengths[1:] == lengths[:-1]
    steps = lengths[1:][alike].sum()
    differing = (onsets[1:] + onsets[:-1] - 2 * common)[alike].sum()
    return float(1 - differing / steps) if steps else math.nan


def pitch_range(music: QuantisedPiece) -> float:
    """Semitones from the lowest note to the highest, drums left out."""
    pitch = music.pitch[music.melodic]
    return float(np.ptp(pitch)) if len(pitch) else math.nan


def polyphony(music: QuantisedPiece) -> float:
    """Mean number of pitches that sound at once, where any does; drums left out.

    A pitch that two instruments hold counts once.
    """
    melodic = music.melodic
    start, end, pitch = music.start_steps[melodic], ends(music)[melodic], music.pitch[melodic]
    any_steps = covered(start, end, np.zeros_like(pitch))
    return covered(start, end, pitch) / any_steps if any_steps else math.nan


def covered(start: np.ndarray, end: np.ndarray, group: np.ndarray) -> int:
    """Steps that intervals cover, overlaps once; groups apart.

    Args:
        start: (N,) first step.
        end: (N,) step after the last.
        group: (N,) from 0; intervals of different groups do not overlap.

    >>> covered(np.array([0, 2]), np.array([4, 6]), np.array([0, 0]))
    6
    >>> covered(np.array([0, 2]), np.array([4, 6]), np.array([0, 1]))
    8
    """
    if not len(start):
        return 0
    # Groups one after the other on one line, with no room to meet.
    shift = group.astype(np.int64) * (int(end.max()) + 1)
    start, end = start + shift, end + shift
    order = np.argsort(start, kind="stable")
    start, end = start[order], end[order]
    before = np.concatenate([start[:1], np.maximum.accumulate(end)[:-1]])
    return int(np.maximum(end - np.maximum(start, before), 0).sum())


def ends(music: QuantisedPiece) -> np.ndarray:
    """(num_notes,) step after the last of each note, from the start of the piece."""
    return np.asarray(music.start_steps + music.duration_steps)


def num_instruments(music: QuantisedPiece) -> float:
    """Instruments that play, the drum kit as one."""
    return float(len(np.unique(music.instrument)))


def density(music: QuantisedPiece) -> float:
    """Notes per quarter, over all bars."""
    return float(music.num_notes / (music.bar_start_steps[-1] / STEPS_PER_QUARTER))


def empty_bars(music: QuantisedPiece) -> float:
    """Share of the bars in which no note sounds, held ones included."""
    return float(1 - sounding(music)[1].any(axis=1).mean())


def instrument_overlap(music: QuantisedPiece) -> float:
    """Share of the pairs of instruments that sound together in a bar, mean over bars that sound.

    Pairs are those of all instruments of the piece: 1 where all play in every bar, 0 where each
    waits for the others; nan of a single instrument. Drums are an instrument.
    """
    instruments, sounds_BI = sounding(music)
    if len(instruments) < 2:
        return math.nan
    num_B = sounds_BI.sum(axis=1)
    num_B = num_B[num_B > 0]
    pairs = len(instruments) * (len(instruments) - 1)
    return float((num_B * (num_B - 1)).mean() / pairs)


def sounding(music: QuantisedPiece) -> tuple[np.ndarray, np.ndarray]:
    """Which instruments sound in which bars.

    Returns:
        (I,) instruments of the piece, ascending, and (num_bars, I) bool.
    """
    instruments, place = np.unique(music.instrument, return_inverse=True)
    last = np.searchsorted(music.bar_start_steps, ends(music) - 1, side="right") - 1
    changes_BI = np.zeros((music.num_bars + 1, len(instruments)), np.int64)
    np.add.at(changes_BI, (music.bar, place), 1)
    np.add.at(changes_BI, (np.minimum(last, music.num_bars - 1) + 1, place), -1)
    return instruments, changes_BI.cumsum(axis=0)[:-1] > 0


def sounds_pitched(music: QuantisedPiece) -> np.ndarray:
    """(num_bars,) bool: where anything but drums sounds."""
    instruments, sounds_BI = sounding(music)
    return np.asarray(sounds_BI[:, instruments != DRUMS].any(axis=1))


def compression(music: QuantisedPiece) -> float:
    """How many times shorter a piece gets by what it repeats: its notes' bytes over those packed.

    Grows with the length of a piece: compare pieces of as many bars.
    """
    notes = note_string(music)
    size = max(len(notes), _LEAST_DICTIONARY)
    # Without the container, whose bytes would weigh on short pieces.
    filters = [{"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": size}]
    return len(notes) / len(lzma.compress(notes, format=lzma.FORMAT_RAW, filters=filters))


def note_string(music: QuantisedPiece) -> bytes:
    """All notes in canonical order, each from its bar line, with a mark at the start of each bar.

    Equal bars are equal bytes. Loudness, tempo and metre are left out.
    """
    duration = np.searchsorted(DURATION_STEPS, music.duration_steps)
    onset = music.onset_steps
    columns = (music.instrument, onset >> 8, onset & 0xFF, music.pitch, duration)
    notes = np.stack(columns, axis=1).astype(np.uint8).ravel()
    first = np.searchsorted(music.bar, np.arange(music.num_bars))
    return np.insert(notes, first * _NOTE_BYTES, _BAR_MARK).tobytes()
