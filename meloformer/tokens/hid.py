"""HID: hierarchical, instrument-decoupled tokens; music in, ids out, and back.

Bar by bar: the bar token with its chord, metre and tempo where they change, then instrument by
instrument its onsets, and at each onset its pitches. Duration and velocity stand at the first note
of an instrument in a bar and where they change, so that no bar needs another one to be read.

Everything runs over whole arrays. A matrix holds one row per note with every token that a note
could say, another one row per bar; masks of the same shapes say which ones they do. Reading row by
row gives the tokens of the notes, into which those of the bars are set.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from meloformer.errors import TokenError
from meloformer.midi.grid import DURATION_STEPS, VELOCITIES
from meloformer.midi.harmony import joined_bar_chords
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.attributes import (
    Attributes,
    joined_attributes,
    prefix_length,
    write_prefix,
)
from meloformer.tokens.check import check
from meloformer.tokens.filling import is_filled, unfill
from meloformer.tokens.vocabulary import EOS, INDEX_OF, KIND_OF, OFFSET, Kind, is_kind
from meloformer.tokens.windows import cut_bar

_BAR_COLUMNS = (Kind.BAR, Kind.METRE, Kind.TEMPO)
_NOTE_COLUMNS = (Kind.INSTRUMENT, Kind.ONSET, Kind.PITCH, Kind.DURATION, Kind.VELOCITY)

# Token of each duration and of each velocity; what stands in no table is no token.
_DURATION_TOKEN = np.zeros(DURATION_STEPS[-1] + 1, np.uint16)
_DURATION_TOKEN[DURATION_STEPS] = OFFSET[Kind.DURATION] + np.arange(len(DURATION_STEPS))
_VELOCITY_TOKEN = np.zeros(VELOCITIES[-1] + 1, np.uint16)
_VELOCITY_TOKEN[VELOCITIES] = OFFSET[Kind.VELOCITY] + np.arange(len(VELOCITIES))


def encode(quantised: QuantisedPiece, attributes: Attributes | None = None) -> np.ndarray:
    """Tokens of a whole piece.

    Args:
        quantised: canonical, with at least one note.
        attributes: what the prefix says; None: everything that it can say.

    Returns:
        (T,) uint16 ids, BOS to EOS.

    Raises:
        TokenError: the piece holds no note.
    """
    if not quantised.num_notes:
        raise TokenError("a piece without notes has no tokens; allowed: at least one note")
    joined = JoinedPieces.of(quantised)
    said = joined_attributes(joined) if attributes is None else [attributes]
    return encode_pieces(joined, said)[0].ids


@dataclass(frozen=True, eq=False)
class EncodedPiece:
    """Tokens of a whole piece.

    Args:
        ids: (T,) uint16, BOS to EOS.
        bar_starts: (num_bars + 1,) int32, as `windows.bar_starts` finds them.
    """

    ids: np.ndarray
    bar_starts: np.ndarray


def encode_pieces(joined: JoinedPieces, attributes: Sequence[Attributes]) -> list[EncodedPiece]:
    """Tokens of each of several pieces.

    Args:
        joined: canonical pieces, each with at least one note.
        attributes: what each prefix says.
    """
    bars, starts = _encode_bars(joined, joined_bar_chords(joined))
    eos = np.array([EOS], np.uint16)
    encoded = []
    ends = joined.first_bar.tolist()
    for said, first, last in zip(attributes, ends[:-1], ends[1:], strict=True):
        prefix = write_prefix(said)
        ids = np.concatenate([prefix, bars[starts[first] : starts[last]], eos])
        own_starts = starts[first : last + 1] + np.int32(len(prefix) - starts[first])
        encoded.append(EncodedPiece(ids, own_starts))
    return encoded


def encode_bars(quantised: QuantisedPiece, chords: np.ndarray) -> np.ndarray:
    """Tokens of the bars alone, without prefix and EOS.

    Args:
        quantised: canonical; empty bars are written, wherever they are.
        chords: (num_bars,) 0..84, what the bar tokens carry.
    """
    return _encode_bars(JoinedPieces.of(quantised), chords)[0]


def _encode_bars(joined: JoinedPieces, chords: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Tokens of all bars, and (num_bars + 1,) int32 where each starts, the last entry the end."""
    q = joined.music
    tokens = np.empty((q.num_notes, len(_NOTE_COLUMNS)), np.uint16)
    tokens[:, 0] = q.instrument + OFFSET[Kind.INSTRUMENT]
    tokens[:, 1] = q.onset_steps + OFFSET[Kind.ONSET]
    tokens[:, 2] = q.pitch + OFFSET[Kind.PITCH]
    tokens[:, 3] = _DURATION_TOKEN.take(q.duration_steps)
    tokens[:, 4] = _VELOCITY_TOKEN.take(q.velocity)
    starts_segment = _changes(q.bar) | _changes(q.instrument)
    is_said = np.ones(tokens.shape, bool)
    is_said[:, 0] = starts_segment
    is_said[:, 1] = starts_segment | _changes(q.onset_steps)
    is_said[:, 3] = starts_segment | _changes(q.duration_steps)
    is_said[:, 4] = starts_segment | _changes(q.velocity)
    said = np.flatnonzero(is_said)

    header = np.empty((q.num_bars, len(_BAR_COLUMNS)), np.uint16)
    header[:, 0] = chords + OFFSET[Kind.BAR]
    header[:, 1] = q.bar_metre + OFFSET[Kind.METRE]
    header[:, 2] = q.bar_tempo + OFFSET[Kind.TEMPO]
    in_header = np.ones(header.shape, bool)
    in_header[:, 1] = _changes(q.bar_metre)
    in_header[:, 2] = _changes(q.bar_tempo)
    in_header[joined.first_bar[:-1]] = True  # a piece knows nothing of the one before
    header_length = in_header.sum(axis=1)
    notes_before_bar = q.bar.searchsorted(np.arange(q.num_bars, dtype=q.bar.dtype))
    tokens_before_bar = said.searchsorted(notes_before_bar * len(_NOTE_COLUMNS))
    merged = _inserted(
        tokens.ravel()[said],
        tokens_before_bar.repeat(header_length),
        header.ravel()[np.flatnonzero(in_header)],
    )
    starts = np.full(q.num_bars + 1, len(merged), np.int32)
    starts[:-1] = tokens_before_bar + np.cumsum(header_length) - header_length
    return merged, starts


def decode(ids: np.ndarray) -> QuantisedPiece:
    """Music of a piece or of a window, also of a filled one; the prefix is not read.

    Bar 0 is the first bar of the sequence, of a filled window once it is in bar order. A note that
    would sound into the next onset of its instrument and pitch is cut to the longest duration of
    the grid that does not.

    Args:
        ids: (T,) integer ids: a piece up to EOS, or a window that ends with a finished bar.

    Raises:
        TokenError: the sequence breaks the grammar.
    """
    ids = np.asarray(ids)
    check(ids)
    if is_filled(ids):
        ids = unfill(ids)
    kind, index = KIND_OF.take(ids), INDEX_OF.take(ids)
    # Metre and tempo of the prefix are conditions, not music.
    kind[: prefix_length(ids)] = Kind.CONTROL
    where = {k: np.flatnonzero(is_kind(kind, k)) for k in _BAR_COLUMNS + _NOTE_COLUMNS}

    bars, notes = where[Kind.BAR], where[Kind.PITCH]
    bar_end = np.append(bars[1:], len(ids)) - 1
    # A note owns the tokens up to the next one that is neither its duration nor its velocity.
    kind_after = np.append(kind[1:], int(Kind.CONTROL))
    note_end = notes + is_kind(kind_after[notes], Kind.DURATION)
    note_end += is_kind(kind_after[note_end], Kind.VELOCITY)

    piece = QuantisedPiece(
        bar_metre=index[_last_at(where[Kind.METRE], bar_end)],
        bar_tempo=index[_last_at(where[Kind.TEMPO], bar_end)],
        bar=(np.searchsorted(bars, notes) - 1).astype(np.int32),
        instrument=index[_last_at(where[Kind.INSTRUMENT], notes)],
        onset_steps=index[_last_at(where[Kind.ONSET], notes)],
        pitch=index[notes],
        duration_steps=DURATION_STEPS[index[_last_at(where[Kind.DURATION], note_end)]],
        velocity=VELOCITIES[index[_last_at(where[Kind.VELOCITY], note_end)]],
    )
    return replace(piece, duration_steps=_durations_without_overlap(piece))


def decode_bar(ids: np.ndarray, bar: int) -> QuantisedPiece:
    """Music of a single bar, read from the tokens of that bar and the metre and tempo in force.

    Args:
        ids: (T,) a piece or a window.
        bar: 0..num_bars - 1.
    """
    return decode(cut_bar(ids, bar))


def _changes(values: np.ndarray) -> np.ndarray:
    """Where a value differs from the one before; the first one does."""
    differs = np.ones(len(values), dtype=bool)
    np.not_equal(values[1:], values[:-1], out=differs[1:])
    return differs


def _inserted(tokens: np.ndarray, before: np.ndarray, inserted: np.ndarray) -> np.ndarray:
    """Tokens with others set among them, several before one in their order; np.insert takes longer.

    >>> _inserted(np.array([1, 2]), np.array([0, 1, 1, 2]), np.array([6, 7, 8, 9])).tolist()
    [6, 1, 7, 8, 2, 9]
    """
    place = before + np.arange(len(before))
    is_old = np.ones(len(tokens) + len(inserted), bool)
    is_old[place] = False
    merged = np.empty(len(is_old), tokens.dtype)
    merged[is_old] = tokens
    merged[place] = inserted
    return merged


def _last_at(statements: np.ndarray, positions: np.ndarray) -> np.ndarray:
    """The last statement at or before each position; both ascending."""
    return statements[np.searchsorted(statements, positions, side="right") - 1]


def _durations_without_overlap(piece: QuantisedPiece) -> np.ndarray:
    """Durations cut where a note sounds into the next onset of its instrument and pitch."""
    if not piece.num_notes:
        return piece.duration_steps
    voice = piece.instrument * 128 + piece.pitch
    # Canonical order is time order inside a voice, and a stable sort keeps it.
    order = np.argsort(voice, kind="stable")
    onset = (piece.bar_start_steps[piece.bar] + piece.onset_steps)[order]
    longest = np.full(piece.num_notes, DURATION_STEPS[-1], dtype=np.int64)
    longest[:-1] = np.where(np.diff(voice[order]) == 0, np.diff(onset), longest[:-1])

    duration = piece.duration_steps.copy()
    sounds_on = duration[order] > longest
    cut = np.searchsorted(DURATION_STEPS, longest[sounds_on], side="right") - 1
    duration[order[sounds_on]] = DURATION_STEPS[cut]
    return duration
