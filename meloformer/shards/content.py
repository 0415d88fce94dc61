"""What a piece is known by: a hash of its notes, and one of its tune that decides the split."""

import hashlib
from itertools import pairwise

import numpy as np

from meloformer.midi.grid import (
    DRUMS,
    DURATION_STEPS,
    MAX_BAR_STEPS,
    METRES,
    NUM_INSTRUMENTS,
    TEMPOS_BPM,
    VELOCITIES,
)
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.limits import MAX_BARS
from meloformer.midi.quantised import QuantisedPiece
from meloformer.shards.manifest import SPLITS, ShardSettings

# Long enough that two different pieces among 10^8 meet with a chance under 10^-12.
KEY_LENGTH = 24

_NUM_PITCHES = 128
_PITCH_BITS = (_NUM_PITCHES - 1).bit_length()


def _bits(most: int) -> int:
    return int(most).bit_length()


# A note as two words of 32 bits, from the highest bit: bar and onset; instrument, pitch, duration
# and velocity. A bar as one: metre and tempo. No two notes or bars are the same words.
_ONSET_BITS = _bits(MAX_BAR_STEPS - 1)
_DURATION_BITS, _VELOCITY_BITS = _bits(DURATION_STEPS[-1]), _bits(VELOCITIES[-1])
_TEMPO_BITS = _bits(len(TEMPOS_BPM) - 1)
assert _bits(MAX_BARS - 1) + _ONSET_BITS <= 32
assert _bits(NUM_INSTRUMENTS - 1) + _PITCH_BITS + _DURATION_BITS + _VELOCITY_BITS <= 32
assert _bits(len(METRES) - 1) + _TEMPO_BITS <= 32


def note_key(quantised: QuantisedPiece) -> str:
    """Key of one piece, as `note_keys` makes of many."""
    return note_keys(JoinedPieces.of(quantised))[0]


def note_keys(joined: JoinedPieces) -> list[str]:
    """Hash of all bars and notes of each piece: pieces with one key are exact note copies.

    Returns:
        KEY_LENGTH hex digits for each; the name of the piece in its shard.
    """
    music = joined.music
    bars = ((music.bar_metre << _TEMPO_BITS) | music.bar_tempo).astype("<u4")
    notes = np.empty((music.num_notes, 2), "<u4")
    place = music.bar - joined.first_bar[:-1].astype(np.int32).repeat(joined.num_notes)
    place <<= _ONSET_BITS
    np.bitwise_or(place, music.onset_steps, out=notes[:, 0], casting="unsafe")
    sound = music.instrument << _PITCH_BITS
    sound |= music.pitch
    sound <<= _DURATION_BITS
    sound |= music.duration_steps
    sound <<= _VELOCITY_BITS
    np.bitwise_or(sound, music.velocity, out=notes[:, 1], casting="unsafe")
    bars_of, notes_of = pairwise(joined.first_bar.tolist()), pairwise(joined.first_note.tolist())
    return [
        _digest(bars[slice(*bar)], notes[slice(*note)]).hexdigest()[:KEY_LENGTH]
        for bar, note in zip(bars_of, notes_of, strict=True)
    ]


def tune_hash(quantised: QuantisedPiece) -> int:
    """Tune of one piece, as `tune_hashes` makes of many."""
    return tune_hashes(JoinedPieces.of(quantised))[0]


def tune_hashes(joined: JoinedPieces) -> list[int]:
    """Hash of each piece's tune alone, so that its versions share a split.

    Equal for copies that differ in key, tempo, velocities, durations, bar lines, instruments,
    drums, silence at the start, or that write all note values twice as long.

    Returns:
        64 bits for each.
    """
    music = joined.music
    melodic, bounds = music.melodic, joined.first_note
    is_drums = np.zeros(len(joined), bool)  # and nothing else
    if not isinstance(melodic, slice):
        bounds = melodic.searchsorted(joined.first_note)
        is_drums = bounds[1:] == bounds[:-1]
        if is_drums.any():
            is_heard = music.instrument != DRUMS
            is_heard |= is_drums.repeat(joined.num_notes)
            melodic = np.flatnonzero(is_heard)
            bounds = melodic.searchsorted(joined.first_note)
    # All on one time line, so that the notes of one piece stay together.
    num_steps = int(music.bar_start_steps[-1])
    dtype = np.int32 if num_steps < 1 << (31 - _PITCH_BITS) else np.int64
    notes: np.ndarray = music.start_steps[melodic].astype(dtype)
    notes <<= _PITCH_BITS
    notes += music.pitch[melodic]
    notes.sort()
    is_new = np.empty(len(notes), bool)
    is_new[0] = True
    np.not_equal(notes[1:], notes[:-1], out=is_new[1:])  # instruments in unison count once
    kept = np.flatnonzero(is_new)
    notes, bounds = notes[kept], kept.searchsorted(bounds)
    starts, num_notes = bounds[:-1], bounds[1:] - bounds[:-1]

    lowest = np.minimum.reduceat(notes & (_NUM_PITCHES - 1), starts)
    lowest[is_drums] = 0  # a drum's pitch is its name: it has no key
    notes -= ((notes[starts] & -_NUM_PITCHES) + lowest).repeat(num_notes)
    onset = notes >> _PITCH_BITS
    shared = np.gcd.reduceat(onset, starts)
    if (shared > 1).any():
        # Onsets are whole multiples; a piece of one onset shares 0 with nobody.
        np.maximum(shared, 1, out=shared)
        notes &= _NUM_PITCHES - 1
        notes |= onset // shared.repeat(num_notes) << _PITCH_BITS
    words = notes.astype("<i8")
    return [
        int.from_bytes(_digest(words[start:end]).digest()[:8], "big")
        for start, end in pairwise(bounds.tolist())
    ]


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
    """sha256 over the arrays' lengths, then their values."""
    digest = hashlib.sha256(b"".join(len(array).to_bytes(8, "little") for array in arrays))
    for array in arrays:
        digest.update(array.data)
    return digest
