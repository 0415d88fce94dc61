"""What near copies are known by: short melodic figures of each track, and a MinHash over them.

A figure is eight successive notes of the top or the bottom line of one track, told by its intervals
and by which notes come faster or slower than the one before. So it survives transposition, another
tempo, note values twice as long, another program, moved bar lines, a dropped track, and most
changes of single notes. Tracks, not instruments: many files give one program to all of them, and
the lines of what remains after a drop are no longer those of the whole.

The tracks of many pieces are laid end to end, so that one array call does for all of them.

Source: Broder, "On the resemblance and containment of documents", 1997.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from meloformer.midi.grid import STEPS_PER_QUARTER
from meloformer.midi.limits import MAX_NOTES, MAX_TICKS_PER_QUARTER
from meloformer.midi.piece import Notes, Piece

NUM_HASHES = 128
NO_FINGERPRINT = np.uint32(0xFFFFFFFF)  # every hash of a piece without a figure

_FIGURE_NOTES = 8
_SHORT_FIGURE_NOTES = 5  # of a line so short that longer figures would be too few
_SHORT_LINE_NOTES = 24
_MIN_PITCH_CLASSES = 3  # fewer make an ostinato that half of all pieces hold
_MAX_PER_TRACK = 48
_MIN_MELODIC = 8  # figures of a piece; with fewer its drums speak too

# A figure as one integer, from the lowest bit: is it varied, its hash, the track.
_HASH_BITS, _TRACK_BITS = 47, 16
_TRACK_SHIFT = 1 + _HASH_BITS
_NO_TRACK = (1 << _TRACK_BITS) - 1
# No piece has more tracks than numbers, since those too short for a figure are left out.
assert MAX_NOTES // _SHORT_FIGURE_NOTES <= _NO_TRACK

_PITCH_BITS = 7
_NOTES_AT_ONCE = 1 << 16  # bounds the memory; so many keep the cost of a call small

# Onsets are rounded to steps in floating point. What should be a whole number must not come out a
# little below; the next multiple of half a tick is further off than this.
_LESS_THAN_HALF_A_TICK = 0.25 / MAX_TICKS_PER_QUARTER

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
_XOR = (_random_words(2 << 16, NUM_HASHES) >> np.uint64(32)).astype(np.uint32)[:, None]
_FACTOR = ((_random_words(3 << 16, NUM_HASHES) >> np.uint64(32)).astype(np.uint32) | 1)[:, None]
_SCRAMBLED_AT_ONCE = 1 << 16  # what stays in the processor's cache

_PITCH_CLASS_BIT = (1 << np.arange(128) % 12).astype(np.uint16)
_DRUM_BIT = (1 << np.arange(128) % 16).astype(np.uint16)


def signature(piece: Piece) -> np.ndarray:
    """MinHash of one piece's figures: (NUM_HASHES,) uint32, as `signatures` makes of many."""
    return signatures([piece])[0]


def signatures(pieces: Sequence[Piece]) -> np.ndarray:
    """MinHash of each piece's figures; the share of equal entries estimates how much two share.

    Args:
        pieces: as read, their tracks apart.

    Returns:
        (P, NUM_HASHES) uint32; all NO_FINGERPRINT for a piece without a figure.
    """
    found = fingerprints(pieces)
    result = np.full((len(found), NUM_HASHES), NO_FINGERPRINT)
    with_figures = [index for index, values in enumerate(found) if len(values)]
    if with_figures:
        result[with_figures] = min_hashes([found[index] for index in with_figures])
    return result


def min_hashes(sets: Sequence[np.ndarray]) -> np.ndarray:
    """Least of the values of each set in each of NUM_HASHES scrambled orders.

    Args:
        sets: (N,) uint32 each, N >= 1; at least one set.

    Returns:
        (P, NUM_HASHES) uint32.
    """
    values = np.concatenate(sets)
    starts = [0, *accumulate(len(each) for each in sets[:-1])]
    least = np.empty((NUM_HASHES, len(sets)), np.uint32)
    num_orders = max(1, _SCRAMBLED_AT_ONCE // len(values))
    for start in range(0, NUM_HASHES, num_orders):
        orders = slice(start, start + num_orders)
        scrambled = values ^ _XOR[orders]
        scrambled *= _FACTOR[orders]
        np.minimum.reduceat(scrambled, starts, axis=1, out=least[orders])
    return least.T


def fingerprints(pieces: Sequence[Piece]) -> list[np.ndarray]:
    """Hashes of the figures that stand for each piece.

    Returns:
        (N,) uint32 for each, in no order, some perhaps twice.
    """
    found = _figures(pieces, drums=False)
    few = [index for index, values in enumerate(found) if len(values) < _MIN_MELODIC]
    for index, drums in zip(few, _figures([pieces[i] for i in few], drums=True), strict=True):
        found[index] = np.concatenate([found[index], drums])
    return found


def _figures(pieces: Sequence[Piece], *, drums: bool) -> list[np.ndarray]:
    """Sampled figures of each piece's drums, or of all its other tracks.

    Returns:
        (N,) uint32 for each piece.
    """
    tracks, ticks_per_quarter, first_track = [], [], [0]
    for piece in pieces:
        for track in piece.tracks:
            if track.is_drum == drums and len(track.notes) >= _SHORT_FIGURE_NOTES:
                tracks.append(track.notes)
                ticks_per_quarter.append(piece.ticks_per_quarter)
        first_track.append(len(tracks))
    num_notes = [len(notes) for notes in tracks]
    if len(pieces) > 1 and (len(tracks) > _NO_TRACK or sum(num_notes) > _NOTES_AT_ONCE):
        half = len(pieces) // 2
        return _figures(pieces[:half], drums=drums) + _figures(pieces[half:], drums=drums)
    if not tracks:
        return [np.zeros(0, np.uint32)] * len(pieces)
    lines = _lines(tracks, np.array(num_notes), np.array(ticks_per_quarter))
    values, track_of_value = _sample(_keys(lines, drums=drums), len(tracks))
    starts = track_of_value.searchsorted(first_track).tolist()
    return [values[start:end] for start, end in pairwise(starts)]


@dataclass(frozen=True, eq=False, kw_only=True)
class _Lines:
    """Top line of each track, then the bottom line of each that has chords: one note an onset.

    Args:
        pitch: (N,) int16.
        step: (N,) onsets, of whatever origin in each line.
        track: (L,) int64 track of each line.
        length: (L,) int64 notes of each line.
    """

    pitch: np.ndarray
    step: np.ndarray
    track: np.ndarray
    length: np.ndarray


def _lines(tracks: Sequence[Notes], num_notes: np.ndarray, ticks_per_quarter: np.ndarray) -> _Lines:
    """Lines of tracks, which may be those of several pieces.

    Args:
        tracks: at least one.
        num_notes: (len(tracks),) notes of each, at least one.
        ticks_per_quarter: (len(tracks),) resolution of each.
    """
    steps = np.concatenate([notes.onset_ticks for notes in tracks], dtype=np.float64)
    steps *= (STEPS_PER_QUARTER / ticks_per_quarter).repeat(num_notes)
    steps += 0.5 + _LESS_THAN_HALF_A_TICK
    # All on one time line: a place is told by its track and its step.
    num_steps = int(steps.max()) + 1
    num_places = len(tracks) * num_steps
    dtype = np.int32 if num_places < 1 << (31 - _PITCH_BITS) else np.int64
    notes: np.ndarray = steps.astype(dtype)
    notes += np.arange(0, num_places, num_steps, dtype=dtype).repeat(num_notes)
    notes <<= _PITCH_BITS
    notes |= np.concatenate([notes.pitch for notes in tracks])
    notes.sort()
    place = notes >> _PITCH_BITS
    is_last = np.empty(len(place), bool)
    np.not_equal(place[1:], place[:-1], out=is_last[:-1])
    is_last[-1] = True
    chosen = np.flatnonzero(is_last)
    num_onsets = chosen.searchsorted(num_notes.cumsum())
    num_onsets[1:] -= num_onsets[:-1].copy()
    is_chordal = num_onsets < num_notes
    track, length = np.arange(len(tracks)), num_onsets
    if is_chordal.any():
        # The lowest note of an onset follows the highest of the one before.
        lowest = np.empty_like(chosen)
        lowest[0] = 0
        np.add(chosen[:-1], 1, out=lowest[1:])
        lowest = lowest[np.flatnonzero(is_chordal.repeat(num_onsets))]
        chosen = np.concatenate([chosen, lowest])
        track = np.concatenate([track, np.flatnonzero(is_chordal)])
        length = np.concatenate([length, num_onsets[is_chordal]])
    notes = notes[chosen]
    pitch = (notes & ((1 << _PITCH_BITS) - 1)).astype(np.int16)
    return _Lines(pitch=pitch, step=notes >> _PITCH_BITS, track=track, length=length)


def _keys(lines: _Lines, *, drums: bool) -> np.ndarray:
    """All figures of all lines, as integers.

    Returns:
        (N,) uint64, ascending.
    """
    pitch, step = lines.pitch, lines.step
    wait = step[1:] - step[:-1]
    # Against the wait before: scaling all note values changes nothing.
    five, seven = 5 * wait, 7 * wait
    symbol = (five[1:] > seven[:-1]).astype(np.int16)
    symbol += (seven[1:] >= five[:-1]).view(np.int8)
    symbol *= _NUM_HEIGHTS
    symbol += pitch[2:]
    if not drums:
        symbol -= pitch[1:-1]
        symbol += _NUM_HEIGHTS // 2
    one = (_DRUM_SYMBOLS if drums else _MELODIC_SYMBOLS)[symbol.astype(np.int64)]
    two = one[:-1] * _POWER_1
    two += one[1:]
    four = two[:-2] * _POWER_2
    four += two[2:]
    six = four[:-2] * _POWER_2
    six += two[4:]
    heard = (_DRUM_BIT if drums else _PITCH_CLASS_BIT)[pitch.astype(np.int64)]
    heard_2 = heard[:-1] | heard[1:]
    heard_4 = heard_2[:-2] | heard_2[2:]
    heard_8 = heard_4[:-4] | heard_4[4:]

    is_long = lines.length >= _SHORT_LINE_NOTES
    num_long = (lines.length - (_FIGURE_NOTES - 1)) * is_long
    keys = _packed(six, heard_8)
    keys |= _tracks_of(lines, num_long)[: len(keys)]
    num_keys = int(num_long.sum())
    if not is_long.all():
        num_short = np.maximum(lines.length - (_SHORT_FIGURE_NOTES - 1), 0) * ~is_long
        track = _tracks_of(lines, num_short)
        at = np.flatnonzero(track < _NO_TRACK << _TRACK_SHIFT)
        short_keys = _packed(two[at] * _POWER_1 + one[at + 2], heard_4[at] | heard[at + 4])
        short_keys |= track[at]
        keys = np.concatenate([keys, short_keys])
        num_keys += len(at)
    keys.sort()
    return keys[:num_keys]


def _tracks_of(lines: _Lines, num_figures: np.ndarray) -> np.ndarray:
    """What the figure that starts at each note holds as its track.

    Args:
        lines: of all tracks.
        num_figures: (L,) int64 figures of each line; what starts behind them would leave the line,
            and gets a track that sorts behind all others.

    Returns:
        (N,) uint64.
    """
    track = np.full((len(lines.track), 2), _NO_TRACK)
    track[:, 0] = lines.track
    num_notes = np.empty_like(track)
    num_notes[:, 0] = num_figures
    np.subtract(lines.length, num_figures, out=num_notes[:, 1])
    return (track.view(np.uint64) << _TRACK_SHIFT).ravel().repeat(num_notes.ravel())


def _packed(hashes: np.ndarray, heard: np.ndarray) -> np.ndarray:
    """Figures as integers, without their track.

    Args:
        hashes: (N,) uint64, overwritten.
        heard: (N,) uint16, a bit for each pitch class or drum, overwritten.
    """
    hashes >>= 64 - _HASH_BITS
    hashes <<= 1
    for _ in range(_MIN_PITCH_CLASSES - 1):
        heard &= heard - 1  # drops the lowest bit
    hashes |= (heard != 0).astype(np.uint64)
    return hashes


def _sample(keys: np.ndarray, num_tracks: int) -> tuple[np.ndarray, np.ndarray]:
    """A bounded number of figures of each track, often repeated ones first.

    A track of one loop has as many figures as the loop, and single changed notes, though each
    makes several figures, must not outnumber them: so a track may give as many as it has
    effectively (the inverse of the chance that two of its figures are equal), and each of them
    comes in with a chance in proportion to its count. That chance is the figure's own hash: other
    versions of the piece choose the same.

    Args:
        keys: (N,) uint64, ascending.
        num_tracks: how many tracks they may come from.

    Returns:
        (M,) uint32, and (M,) int64 the track of each, ascending.
    """
    if not len(keys):
        return np.zeros(0, np.uint32), np.zeros(0, np.int64)
    bounds = keys.searchsorted(np.arange(num_tracks + 1, dtype=np.uint64) << _TRACK_SHIFT)
    track = np.flatnonzero(bounds[1:] > bounds[:-1])
    bounds = np.append(bounds[track], len(keys))
    is_new = np.empty(len(keys) + 1, bool)
    np.not_equal(keys[1:], keys[:-1], out=is_new[1:-1])
    is_new[0] = is_new[-1] = True
    start = np.flatnonzero(is_new)
    count = start[1:] - start[:-1]
    first = start.searchsorted(bounds[:-1])
    total = bounds[1:] - bounds[:-1]
    effective = total * total // np.add.reduceat(count * count, first)
    chance = np.minimum(effective, _MAX_PER_TRACK) / total
    chance *= 2.0**_HASH_BITS

    # Within a track they ascend: what is too high for its most frequent one is not looked at.
    limit = 2.0 * (chance * np.maximum.reduceat(count, first) + 1.0)
    limit = np.minimum(limit, 2.0**_TRACK_SHIFT - 1.0).astype(np.uint64)
    limit |= track.view(np.uint64) << _TRACK_SHIFT
    num = start.searchsorted(keys.searchsorted(limit, side="right")) - first
    at = np.arange(num.sum()) + (first - num.cumsum() + num).repeat(num)
    figures = keys[start[at]]
    hashes = (figures >> 1 & ((1 << _HASH_BITS) - 1)).view(np.int64)
    is_kept = hashes <= count[at] * chance.repeat(num)
    is_kept &= (figures & 1) == 1
    kept = np.flatnonzero(is_kept)
    values = (hashes[kept] >> (_HASH_BITS - 32)).astype(np.uint32)
    return values, track.repeat(num)[kept]
