"""What a piece is known by: a hash of its notes, and one of its tune that decides the split."""

import hashlib

import numpy as np

from meloformer.midi.quantised import QuantisedPiece
from meloformer.shards.manifest import SPLITS, ShardSettings

# Long enough that two different pieces among 10^8 meet with a chance under 10^-12.
KEY_LENGTH = 24

_NUM_PITCHES = 128


def note_key(quantised: QuantisedPiece) -> str:
    """Hash of all bars and notes: pieces with one key are exact note copies.

    Returns:
        KEY_LENGTH hex digits; the name of the piece in its shard.
    """
    return _digest(
        quantised.bar_metre,
        quantised.bar_tempo,
        quantised.bar,
        quantised.instrument,
        quantised.onset_steps,
        quantised.pitch,
        quantised.duration_steps,
        quantised.velocity,
    ).hexdigest()[:KEY_LENGTH]


def tune_hash(quantised: QuantisedPiece) -> int:
    """Hash of the tune alone, so that its versions share a split.

    Equal for copies that differ in key, tempo, velocities, durations, bar lines, instruments,
    drums, silence at the start, or that write all note values twice as long.

    Returns:
        64 bits.
    """
    melodic = quantised.melodic
    onset, pitch = quantised.start_steps[melodic], quantised.pitch[melodic]
    if len(pitch):
        pitch = pitch - pitch.min()
    else:  # a drum's pitch is its name: it has no key
        onset, pitch = quantised.start_steps, quantised.pitch
    notes = (onset - onset.min()) * _NUM_PITCHES + pitch
    notes.sort()
    is_new = np.ones(len(notes), bool)
    np.not_equal(notes[1:], notes[:-1], out=is_new[1:])  # instruments in unison count once
    notes = notes[is_new]
    onset = notes // _NUM_PITCHES
    shared = int(np.gcd.reduce(onset))
    if shared > 1:
        notes = onset // shared * _NUM_PITCHES + notes % _NUM_PITCHES
    return int.from_bytes(_digest(notes).digest()[:8], "big")


def split_of(tunes: np.ndarray, settings: ShardSettings) -> np.ndarray:
    """Split of each tune: by its hash alone, so other files never move it.

    Args:
        tunes: (N,) uint64.
        settings: shares of the splits.

    Returns:
        (N,) index into SPLITS.

    >>> names = split_of(np.array([0, 2**64 - 1], dtype=np.uint64), ShardSettings())
    >>> [SPLITS[n] for n in names]
    ['valid', 'train']
    """
    place = tunes / 2.0**64
    is_valid = place < settings.valid_share
    is_test = ~is_valid & (place < settings.valid_share + settings.test_share)
    return np.where(is_valid, SPLITS.index("valid"), np.where(is_test, SPLITS.index("test"), 0))


def _digest(*arrays: np.ndarray) -> "hashlib._Hash":
    """sha256 over each array's length and values, all as little-endian int64."""
    words = np.empty(len(arrays) + sum(map(len, arrays)), "<i8")
    start = 0
    for array in arrays:
        words[start] = len(array)
        start += 1 + len(array)
        words[start - len(array) : start] = array
    return hashlib.sha256(words.data)
