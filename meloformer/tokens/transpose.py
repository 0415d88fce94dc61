"""Transposition of tokens: what moves is the melodic notes, the chords and the key."""

import numpy as np

from meloformer.errors import TokenError
from meloformer.midi.grid import DRUMS
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import (
    BLOCK_SIZES,
    CHORD_QUALITIES,
    INDEX_OF,
    KIND_OF,
    NO_CHORD,
    NUM_CHORDS,
    NUM_KEYS,
    OFFSET,
    PITCH_CLASSES,
    VOCAB_SIZE,
    Kind,
    is_kind,
)


def transpose(ids: np.ndarray, semitones: int) -> np.ndarray:
    """Shift a piece or a window; the drum kit, which has no pitches, stays.

    Args:
        ids: (T,) a checked sequence.
        semitones: up, or down where negative; `transpositions` says which ones fit.

    Raises:
        TokenError: a pitch would leave 0..127.

    >>> from meloformer.tokens.vocabulary import BOS, token_id, token_name
    >>> token_name(transpose(np.array([BOS, token_id(Kind.KEY, 9)]), 3)[1])
    'KEY:C major'
    """
    lowest, highest = transpositions(ids)
    if not lowest <= semitones <= highest:
        raise TokenError(
            f"a transposition by {semitones} semitones takes a pitch out of 0..127; "
            f"allowed for this piece: {lowest}..{highest}"
        )
    moved = _permutation(semitones)[ids]
    melodic = _melodic_pitches(ids)
    moved[melodic] = (ids[melodic].astype(np.int32) + semitones).astype(ids.dtype)
    return moved.astype(ids.dtype, copy=False)


def transpositions(ids: np.ndarray) -> tuple[int, int]:
    """Lowest and highest number of semitones that keep every melodic pitch inside 0..127.

    Without melodic notes any shift does; the answer is then the whole range of pitches.
    """
    pitch = INDEX_OF[ids[_melodic_pitches(ids)]]
    top = BLOCK_SIZES[Kind.PITCH] - 1
    return (-int(pitch.min()), top - int(pitch.max())) if len(pitch) else (-top, top)


def _melodic_pitches(ids: np.ndarray) -> np.ndarray:
    """Positions of the pitch tokens that are not the drum kit's."""
    is_melodic = token_labels(ids).instrument != 1 + DRUMS
    return np.flatnonzero(is_kind(KIND_OF.take(ids), Kind.PITCH) & is_melodic)


def _permutation(semitones: int) -> np.ndarray:
    """(V,) new id of every id, pitches left where they are."""
    new = np.arange(VOCAB_SIZE)
    root, quality = np.divmod(np.arange(NUM_CHORDS), len(CHORD_QUALITIES))
    chords = (root + semitones) % len(PITCH_CLASSES) * len(CHORD_QUALITIES) + quality
    chords[NO_CHORD] = NO_CHORD
    new[OFFSET[Kind.BAR] : OFFSET[Kind.BAR] + NUM_CHORDS] = OFFSET[Kind.BAR] + chords
    mode, tonic = np.divmod(np.arange(NUM_KEYS), len(PITCH_CLASSES))
    keys = mode * len(PITCH_CLASSES) + (tonic + semitones) % len(PITCH_CLASSES)
    new[OFFSET[Kind.KEY] : OFFSET[Kind.KEY] + NUM_KEYS] = OFFSET[Kind.KEY] + keys
    return new
