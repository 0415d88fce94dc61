"""What near copies are known by: short melodic figures of each track, and a MinHash over them.

A figure is eight successive notes of the top or bottom line of one track, told by its intervals
and by which notes come faster or slower than the one before. So it survives transposition, another
tempo, note values twice as long, another program, moved bar lines, a dropped track, and most
changes of single notes. Tracks, not instruments: many files give one program to all of them, and
then the lines of what remains after a drop are no longer those of the whole.

Source: Broder, "On the resemblance and containment of documents", 1997.
"""

import numpy as np

from meloformer.midi.grid import STEPS_PER_QUARTER
from meloformer.midi.piece import Piece

NUM_HASHES = 128

_SYMBOLS = 6  # of a figure: one for each three successive notes
_SHORT_SYMBOLS = 3  # of a figure in a track so short that longer ones would be too few
_SHORT_TRACK = 24  # notes of a line
_MIN_PITCH_CLASSES = 3  # fewer is an ostinato that half of all pieces hold
_MAX_PER_TRACK = 48
_MIN_MELODIC = 8  # fewer figures than this, and the drums speak too

# Layout of a sorting key, from the lowest bit: is it varied, the figure's hash, the track.
_HASH_BITS = 47
_TRACK_SHIFT = np.uint64(_HASH_BITS + 1)
_HASH_MASK = np.uint64((1 << _HASH_BITS) - 1)

_GOLDEN = 0x9E3779B97F4A7C15
_ODD = np.uint64(_GOLDEN)
_ODD_SQUARED = np.uint64(_GOLDEN**2 % 2**64)


def _mix(values: np.ndarray) -> np.ndarray:
    """Scramble 64-bit integers, one to one (the finaliser of MurmurHash3)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51AFD7ED558CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CEB9FE1A85EC53)
    return values ^ (values >> np.uint64(33))


# A symbol is an interval of -127..127 or a drum, and one of three paces.
_NUM_INTERVALS = 256
_SYMBOL_HASHES = _mix(np.arange(1, 2 * 3 * _NUM_INTERVALS + 1, dtype=np.uint64) * _ODD)
_HASH_SEEDS = _mix(np.arange(1, 2 * NUM_HASHES + 1, dtype=np.uint64) * ~_ODD)
_XOR = (_HASH_SEEDS[:NUM_HASHES] >> np.uint64(32)).astype(np.uint32)
_FACTOR = (_HASH_SEEDS[NUM_HASHES:] >> np.uint64(32)).astype(np.uint32) | np.uint32(1)

NO_FINGERPRINT = np.uint32(0xFFFFFFFF)  # every hash of a piece that has none


def signature(piece: Piece) -> np.ndarray:
    """MinHash of a piece's figures; the share of equal entries estimates how much two share.

    Args:
        piece: as read, tracks apart.

    Returns:
        (NUM_HASHES,) uint32; all NO_FINGERPRINT for a piece without a figure.
    """
    found = fingerprints(piece)
    if len(found) == 0:
        return np.full(NUM_HASHES, NO_FINGERPRINT)
    return min_hashes(found)


def min_hashes(values: np.ndarray) -> np.ndarray:
    """Least value of each of NUM_HASHES scrambled orders.

    Args:
        values: (N,) uint32, N >= 1.

    Returns:
        (NUM_HASHES,) uint32.
    """
    scrambled = (values[:, None] ^ _XOR) * _FACTOR
    return scrambled.min(axis=0)


def fingerprints(piece: Piece) -> np.ndarray:
    """Hashes of the figures that stand for a piece.

    Returns:
        (N,) uint32, in no order, some perhaps twice.
    """
    melodic = _figures(*_notes(piece, drums=False), is_drum=False)
    if len(melodic) >= _MIN_MELODIC:
        return melodic
    return np.concatenate([melodic, _figures(*_notes(piece, drums=True), is_drum=True)])


def _notes(piece: Piece, *, drums: bool) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Track, onset in grid steps and pitch of all notes of the drums, or of all others."""
    tracks = [track for track in piece.tracks if track.is_drum == drums and len(track.notes)]
    if not tracks:
        nothing = np.zeros(0, np.int64)
        return nothing, nothing, nothing
    onset = np.concatenate([track.notes.onset_ticks for track in tracks]).astype(np.int64)
    onset = (onset * (2 * STEPS_PER_QUARTER) + piece.ticks_per_quarter) // (
        2 * piece.ticks_per_quarter
    )
    number = np.repeat(np.arange(len(tracks)), [len(track.notes) for track in tracks])
    return number, onset, np.concatenate([track.notes.pitch for track in tracks])


def _figures(
    track: np.ndarray, onset: np.ndarray, pitch: np.ndarray, *, is_drum: bool
) -> np.ndarray:
    """Sampled figures of each track.

    Args:
        track: (N,) int64.
        onset: (N,) int64 steps.
        pitch: (N,).
        is_drum: pitches are names, not heights.

    Returns:
        (M,) uint32.
    """
    if len(track) <= _SHORT_SYMBOLS + 1:
        return np.zeros(0, np.uint32)
    line, onset, pitch = _lines(track, onset, pitch)
    if len(line) <= _SHORT_SYMBOLS + 1:
        return np.zeros(0, np.uint32)
    interval = onset[1:] - onset[:-1]
    # Pace against the interval before: scaling all note values changes nothing.
    pace = (5 * interval[1:] > 7 * interval[:-1]).astype(np.int64)
    pace += 5 * interval[:-1] <= 7 * interval[1:]
    if is_drum:
        height = pitch[2:] + 3 * _NUM_INTERVALS
    else:
        height = pitch[2:] - pitch[1:-1] + 128
    symbol = _SYMBOL_HASHES[height + pace * _NUM_INTERVALS]
    # One bit for each pitch class; a figure's bits are joined below along with its hash.
    classes = np.uint16(1) << (pitch if is_drum else pitch % 12).astype(np.uint16) % np.uint16(16)

    two = symbol[:-1] * _ODD + symbol[1:]
    four = two[:-2] * _ODD_SQUARED + two[2:]
    six = four[:-2] * _ODD_SQUARED + two[4:]
    classes_two = classes[:-1] | classes[1:]
    classes_four = classes_two[:-2] | classes_two[2:]
    classes_eight = classes_four[:-4] | classes_four[4:]
    size = np.bincount(line)
    keys = [_keys(six, classes_eight, line, size >= _SHORT_TRACK)]
    if (size < _SHORT_TRACK).any():
        three = two[:-1] * _ODD + symbol[2:]
        classes_five = classes_four[:-1] | classes[4:]
        keys.append(_keys(three, classes_five, line, size < _SHORT_TRACK))
    return _sample(np.concatenate(keys))


def _lines(
    track: np.ndarray, onset: np.ndarray, pitch: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Top line of each track, then the bottom line of each that has chords.

    Returns:
        line (twice the track, plus one for the bottom), onset and pitch; one note an onset.
    """
    keys = np.sort((track << 39 | onset) << 7 | pitch)
    slot = keys >> 7
    differs = slot[1:] != slot[:-1]
    top = keys[np.append(differs, True)]
    bottom = keys[np.append(True, differs)]
    chordal = np.zeros(int(track.max()) + 1, bool)
    chordal[(bottom >> 46)[top != bottom]] = True
    bottom = bottom[chordal[bottom >> 46]]
    line = np.concatenate([(top >> 46) * 2, (bottom >> 46) * 2 + 1])
    both = np.concatenate([top, bottom])
    return line, (both >> 7) & ((1 << 39) - 1), both & 127


def _keys(
    hashes: np.ndarray, classes: np.ndarray, line: np.ndarray, is_wanted: np.ndarray
) -> np.ndarray:
    """Sorting keys of the figures that lie within one line, of the wanted lines."""
    if len(hashes) == 0:
        return hashes
    first, last = line[: len(hashes)], line[len(line) - len(hashes) :]
    inside = (first == last) & is_wanted[first]
    varied = np.bitwise_count(classes[inside]) >= _MIN_PITCH_CLASSES
    keys = _mix(hashes[inside]) & (_HASH_MASK << np.uint64(1)) | varied
    return keys | (first[inside] >> 1).astype(np.uint64) << _TRACK_SHIFT


def _sample(keys: np.ndarray) -> np.ndarray:
    """A bounded number of figures of each track, often repeated ones first.

    A track of one loop has as many figures as the loop, and single changed notes, though each
    makes several figures, must not outnumber them: so a track may give as many as it has
    effectively (the inverse of the chance that two of its figures are equal), and each of them
    comes in with a chance in proportion to its count. That chance is the figure's own hash: other
    versions of the piece choose the same.

    Args:
        keys: (N,) uint64.

    Returns:
        (M,) uint32.
    """
    keys = np.sort(keys)
    if len(keys) == 0:
        return np.zeros(0, np.uint32)
    start = np.flatnonzero(np.append(True, keys[1:] != keys[:-1]))
    count = np.diff(start, append=len(keys))
    keys = keys[start]
    track = (keys >> _TRACK_SHIFT).astype(np.int64)
    total = np.bincount(track, count)
    pairs = np.bincount(track, count * count)
    wanted = np.minimum(np.maximum(total * total // np.maximum(pairs, 1), 1), _MAX_PER_TRACK)
    limit = (2.0**_HASH_BITS / np.maximum(total, 1) * wanted).astype(np.uint64)
    hashes = keys >> np.uint64(1) & _HASH_MASK
    is_kept = (hashes // count.astype(np.uint64) <= limit[track]) & ((keys & np.uint64(1)) != 0)
    return (hashes[is_kept] >> np.uint64(8)).astype(np.uint32)
