"""HID: hierarchical, instrument-decoupled tokens; music in, ids out, and back.

Bar by bar: the bar token with its chord, metre and tempo where they change, then instrument by
instrument its onsets, and at each onset its pitches. Duration and velocity stand at the first note
of an instrument in a bar and where they change, so that no bar needs another one to be read.

Everything runs over whole arrays. A matrix of five columns holds one row per bar and per note,
with every token that the row could say; a mask of the same shape says which ones it does, and
reading the mask row by row is the sequence.
"""

from dataclasses import replace

import numpy as np

from meloformer.errors import TokenError
from meloformer.midi.grid import DURATION_STEPS, VELOCITIES
from meloformer.midi.harmony import bar_chords, estimate_key
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.attributes import attributes_of, prefix_length, write_prefix
from meloformer.tokens.check import check
from meloformer.tokens.vocabulary import EOS, INDEX_OF, KIND_OF, OFFSET, Kind, is_kind
from meloformer.tokens.windows import cut_bar

_BAR_COLUMNS = (Kind.BAR, Kind.METRE, Kind.TEMPO)
_NOTE_COLUMNS = (Kind.INSTRUMENT, Kind.ONSET, Kind.PITCH, Kind.DURATION, Kind.VELOCITY)
_BAR_OFFSETS = np.array([OFFSET[kind] for kind in _BAR_COLUMNS])
_NOTE_OFFSETS = np.array([OFFSET[kind] for kind in _NOTE_COLUMNS])


def encode(quantised: QuantisedPiece) -> np.ndarray:
    """Tokens of a whole piece, with everything that its prefix can say.

    Args:
        quantised: canonical, with at least one note.

    Returns:
        (T,) uint16 ids, BOS to EOS.

    Raises:
        TokenError: the piece holds no note.
    """
    if not quantised.num_notes:
        raise TokenError("a piece without notes has no tokens; allowed: at least one note")
    attributes = attributes_of(quantised, estimate_key(quantised))
    bars = encode_bars(quantised, bar_chords(quantised))
    return np.concatenate([write_prefix(attributes), bars, np.array([EOS], dtype=np.uint16)])


def encode_bars(quantised: QuantisedPiece, chords: np.ndarray) -> np.ndarray:
    """Tokens of the bars alone, without prefix and EOS.

    Args:
        quantised: canonical; empty bars are written, wherever they are.
        chords: (num_bars,) 0..84, what the bar tokens carry.
    """
    q = quantised
    bars = np.arange(q.num_bars)
    notes_before_bar = np.searchsorted(q.bar, bars)
    bar_rows = bars + notes_before_bar
    note_rows = np.arange(q.num_notes) + q.bar + 1
    shape = (q.num_bars + q.num_notes, len(_NOTE_COLUMNS))
    tokens, is_said = np.zeros(shape, dtype=np.uint16), np.zeros(shape, dtype=bool)

    bar_columns = slice(len(_BAR_COLUMNS))
    header = np.stack([chords, q.bar_metre, q.bar_tempo], axis=1)
    tokens[bar_rows, bar_columns] = header + _BAR_OFFSETS
    is_said[bar_rows, bar_columns] = np.stack(
        [np.ones(q.num_bars, dtype=bool), _changes(q.bar_metre), _changes(q.bar_tempo)], axis=1
    )

    duration = np.searchsorted(DURATION_STEPS, q.duration_steps)
    velocity = np.searchsorted(VELOCITIES, q.velocity)
    statement = np.stack([q.instrument, q.onset_steps, q.pitch, duration, velocity], axis=1)
    tokens[note_rows] = statement + _NOTE_OFFSETS
    starts_segment = _changes(q.bar) | _changes(q.instrument)
    is_said[note_rows] = np.stack(
        [
            starts_segment,
            starts_segment | _changes(q.onset_steps),
            np.ones(q.num_notes, dtype=bool),
            starts_segment | _changes(duration),
            starts_segment | _changes(velocity),
        ],
        axis=1,
    )
    return tokens[is_said]


def decode(ids: np.ndarray) -> QuantisedPiece:
    """Music of a piece or of a window; the prefix is not read.

    Bar 0 is the first bar of the sequence. A note that would sound into the next onset of its
    instrument and pitch is cut to the longest duration of the grid that does not.

    Args:
        ids: (T,) integer ids: a piece up to EOS, or a window that ends with a finished bar.

    Raises:
        TokenError: the sequence breaks the grammar.
    """
    ids = np.asarray(ids)
    check(ids)
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
