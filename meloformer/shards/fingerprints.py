"""What near copies are known by: short melodic figures of each track, and a MinHash over them.

A figure is eight successive notes of the top or the bottom line of one track, told by its intervals
and by which notes come faster or slower than the one before. So it survives transposition, another
tempo, note values twice as long, another program, moved bar lines, a dropped track, and most
changes of single notes. Tracks, not instruments: many files give one program to all of them, and
the lines of what remains after a drop are no longer those of the whole.

Source: Broder, "On the resemblance and containment of documents", 1997.
"""

import numpy as np

from meloformer.midi.grid import STEPS_PER_QUARTER
from meloformer.midi.piece import Piece

NUM_HASHES = 128
NO_FINGERPRINT = np.uint32(0xFFFFFFFF)  # every hash of a piece without a figure

_FIGURE_NOTES = 8
_SHORT_FIGURE_NOTES = 5  # of a line so short that longer figures would be too few
_SHORT_LINE_NOTES = 24
_MIN_PITCH_CLASSES = 3  # fewer make an ostinato that half of all pieces hold
_MAX_PER_TRACK = 48
_MIN_MELODIC = 8  # figures of a piece; with fewer its drums speak too

# A note as one integer, from the lowest bit: pitch, onset, line (twice the track, and one more for
# its bottom line). A figure likewise: is it varied, its hash, the track.
_ONSET_SHIFT, _LINE_SHIFT = 7, 46
_HASH_BITS, _TRACK_SHIFT = 47, 48

_GOLDEN = 0x9E3779B97F4A7C15  # odd; its powers make the hash of a figure


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers, one to one (the finaliser of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


def _random_words(start: int, num: int) -> np.ndarray:
    """(num,) uint64 that look random and are the same on every machine."""
    return _mix(np.arange(start, start + num, dtype=np.uint64) * np.uint64(_GOLDEN))


# A symbol is what one note adds to a figure: its pace, of three, and its interval or drum.
_NUM_HEIGHTS = 256
_MELODIC_SYMBOLS = _random_words(1, 3 * _NUM_HEIGHTS)
_DRUM_SYMBOLS = _random_words(1 << 16, 3 * _NUM_HEIGHTS)
_POWER_1, _POWER_2 = (np.uint64(pow(_GOLDEN, power, 2**64)) for power in (1, 2))
_XOR = (_random_words(2 << 16, NUM_HASHES) >> np.uint64(32)).astype(np.uint32)
_FACTOR = (_random_words(3 << 16, NUM_HASHES) >> np.uint64(32)).astype(np.uint32) | np.uint32(1)

_PITCH_CLASS_BIT = (1 << np.arange(128) % 12).astype(np.uint16)
_DRUM_BIT = (1 << np.arange(128) % 16).astype(np.uint16)


def signature(piece: Piece) -> np.ndarray:
    """MinHash of a piece's figures; the share of equal entries estimates how much two share.

    Args:
        piece: as read, its tracks apart.

    Returns:
        (NUM_HASHES,) uint32; all NO_FINGERPRINT for a piece without a figure.
    """
    found = fingerprints(piece)
    return min_hashes(found) if len(found) else np.full(NUM_HASHES, NO_FINGERPRINT)


def min_hashes(values: np.ndarray) -> np.ndarray:
    """Least of the values in each of NUM_HASHES scrambled orders.

    Args:
        values: (N,) uint32, N >= 1.

    Returns:
        (NUM_HASHES,) uint32.
    """
    scrambled = values[:, None] ^ _XOR
    scrambled *= _FACTOR
    return scrambled.min(axis=0)


def fingerprints(piece: Piece) -> np.ndarray:
    """Hashes of the figures that stand for a piece.

    Returns:
        (N,) uint32, in no order, some perhaps twice.
    """
    melodic = _figures(piece, drums=False)
    if len(melodic) >= _MIN_MELODIC:
        return melodic
    return np.concatenate([melodic, _figures(piece, drums=True)])


def _figures(piece: Piece, *, drums: bool) -> np.ndarray:
    """Sampled figures of the drums, or of all other tracks.

    Returns:
        (N,) uint32.
    """
    notes, line_ends = _lines(piece, drums=drums)
    if len(notes) < _SHORT_FIGURE_NOTES:
        return np.zeros(0, np.uint32)
    pitch = notes & 127
    wait = notes >> _ONSET_SHIFT
    wait = wait[1:] - wait[:-1]
    # Against the wait before: scaling all note values changes nothing.
    pace = (5 * wait[1:] > 7 * wait[:-1]).astype(np.int64)
    pace += 7 * wait[1:] >= 5 * wait[:-1]
    height = pitch[2:] if drums else pitch[2:] - pitch[1:-1] + 128
    one = (_DRUM_SYMBOLS if drums else _MELODIC_SYMBOLS)[height + _NUM_HEIGHTS * pace]
    two = one[:-1] * _POWER_1 + one[1:]
    four = two[:-2] * _POWER_2 + two[2:]
    six = four[:-2] * _POWER_2 + two[4:]
    heard = (_DRUM_BIT if drums else _PITCH_CLASS_BIT)[pitch]
    heard_2 = heard[:-1] | heard[1:]
    heard_4 = heard_2[:-2] | heard_2[2:]
    heard_8 = heard_4[:-4] | heard_4[4:]

    long, short = np.zeros(len(notes), bool), np.zeros(len(notes), bool)
    start = 0
    for end in line_ends:
        if end - start >= _SHORT_LINE_NOTES:
            long[start : end - _FIGURE_NOTES + 1] = True
        elif end - start >= _SHORT_FIGURE_NOTES:
            short[start : end - _SHORT_FIGURE_NOTES + 1] = True
        start = end
    track = notes >> (_LINE_SHIFT + 1)
    keys = _keys(six, heard_8, track, long)
    if short.any():
        three = two[:-1] * _POWER_1 + one[2:]
        heard_5 = heard_4[:-1] | heard[4:]
        keys = np.concatenate([keys, _keys(three, heard_5, track, short)])
    return _sample(keys)


def _lines(piece: Piece, *, drums: bool) -> tuple[np.ndarray, list[int]]:
    """Top line of each track, then the bottom line of each that has chords: one note an onset.

    Returns:
        (N,) int64 notes as integers, ascending within a line, and where each line ends.
    """
    tracks = [track.notes for track in piece.tracks if track.is_drum == drums and len(track.notes)]
    if not tracks:
        return np.zeros(0, np.int64), []
    num_notes = [len(notes) for notes in tracks]
    notes = np.concatenate([notes.onset_ticks for notes in tracks], dtype=np.int64)
    notes *= 2 * STEPS_PER_QUARTER
    notes += piece.ticks_per_quarter
    notes //= 2 * piece.ticks_per_quarter
    notes <<= _ONSET_SHIFT
    notes += np.concatenate([notes.pitch for notes in tracks])
    notes += np.repeat(np.arange(len(tracks)) << (_LINE_SHIFT + 1), num_notes)
    notes.sort()
    slot = notes >> _ONSET_SHIFT
    differs = np.ones(len(notes) + 1, bool)
    np.not_equal(slot[1:], slot[:-1], out=differs[1:-1])
    top = notes[differs[1:]]
    ends = np.searchsorted(top, np.arange(1, len(tracks) + 1) << (_LINE_SHIFT + 1))
    if len(top) == len(notes):
        return top, ends.tolist()
    num_onsets = np.diff(ends, prepend=0)
    chordal = num_onsets < num_notes
    bottom = notes[differs[:-1]][np.repeat(chordal, num_onsets)] + (1 << _LINE_SHIFT)
    bottom_ends = len(top) + np.cumsum(num_onsets[chordal])
    return np.concatenate([top, bottom]), [*ends.tolist(), *bottom_ends.tolist()]


def _keys(
    hashes: np.ndarray, heard: np.ndarray, track: np.ndarray, is_start: np.ndarray
) -> np.ndarray:
    """Figures as integers that sort by track.

    Args:
        hashes: (N,) uint64, a figure for each note but the last ones.
        heard: (N,) uint16, a bit for each pitch class or drum.
        track: (M >= N,) int64, of each note.
        is_start: (M,) bool: a figure that starts here stays within its line.
    """
    at = np.flatnonzero(is_start)
    keys = (hashes[at] >> np.uint64(64 - _HASH_BITS)).view(np.int64) << 1
    keys |= np.bitwise_count(heard[at]) >= _MIN_PITCH_CLASSES
    keys |= track[at] << _TRACK_SHIFT
    return keys


def _sample(keys: np.ndarray) -> np.ndarray:
    """A bounded number of figures of each track, often repeated ones first.

    A track of one loop has as many figures as the loop, and single changed notes, though each
    makes several figures, must not outnumber them: so a track may give as many as it has
    effectively (the inverse of the chance that two of its figures are equal), and each of them
    comes in with a chance in proportion to its count. That chance is the figure's own hash: other
    versions of the piece choose the same.

    Args:
        keys: (N,) int64.

    Returns:
        (M,) uint32.
    """
    if len(keys) == 0:
        return np.zeros(0, np.uint32)
    keys.sort()
    is_new = np.ones(len(keys) + 1, bool)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:-1])
    start = np.flatnonzero(is_new)
    count = (start[1:] - start[:-1]).astype(np.float64)
    keys = keys[start[:-1]]
    track = keys >> _TRACK_SHIFT
    total = np.bincount(track, count)
    effective = total * total / np.maximum(np.bincount(track, count * count), 1.0)
    chance = np.clip(np.floor(effective), 1.0, _MAX_PER_TRACK) / np.maximum(total, 1.0)
    hashes = keys >> 1 & ((1 << _HASH_BITS) - 1)
    is_kept = hashes <= count * chance[track] * 2.0**_HASH_BITS
    is_kept &= (keys & 1).astype(bool)
    return (hashes[is_kept] >> (_HASH_BITS - 32)).astype(np.uint32)
