"""Notes of a quantised piece taken out and put in; what is kept is kept note for note."""

from collections.abc import Collection
from dataclasses import fields, replace

import numpy as np

from meloformer.midi.grid import DURATION_STEPS
from meloformer.midi.quantised import QuantisedPiece

_NOTE_COLUMNS = tuple(
    field.name for field in fields(QuantisedPiece) if field.name not in ("bar_metre", "bar_tempo")
)


def with_notes(piece: QuantisedPiece, chosen: np.ndarray) -> QuantisedPiece:
    """The same bars with some of the notes: (num_notes,) bool or indices, ascending."""
    return replace(piece, **{name: getattr(piece, name)[chosen] for name in _NOTE_COLUMNS})


def with_bars(piece: QuantisedPiece, num_bars: int) -> QuantisedPiece:
    """So many bars of a piece: later ones are left out, missing ones added empty.

    Metre and tempo of the last bar that is kept go on.
    """
    bars = np.minimum(np.arange(num_bars), piece.num_bars - 1)
    kept = with_notes(piece, piece.bar < num_bars)
    return replace(kept, bar_metre=piece.bar_metre[bars], bar_tempo=piece.bar_tempo[bars])


def without_empty_end(piece: QuantisedPiece) -> QuantisedPiece:
    """Up to the last bar in which a note begins."""
    return with_bars(piece, int(piece.bar.max()) + 1) if piece.num_notes else piece


def notes_of_bar(
    piece: QuantisedPiece, bar: int, instruments: Collection[int]
) -> list[tuple[int, int, int]]:
    """(instrument, onset, pitch) of what some instruments begin in a bar, in canonical order."""
    chosen = (piece.bar == bar) & np.isin(piece.instrument, list(instruments))
    columns = (piece.instrument, piece.onset_steps, piece.pitch)
    return list(zip(*(column[chosen].tolist() for column in columns), strict=True))


def sounding(piece: QuantisedPiece, bar: int, instrument: int, onset_steps: int) -> np.ndarray:
    """Pitches of an instrument's notes that sound at an onset."""
    now = int(piece.bar_start_steps[bar]) + onset_steps
    is_on = (piece.instrument == instrument) & (piece.start_steps <= now)
    is_on &= piece.start_steps + piece.duration_steps > now
    return piece.pitch[is_on]


def spliced(kept: QuantisedPiece, new: QuantisedPiece) -> QuantisedPiece:
    """Put notes among others that stay as they are.

    A new note that would begin while a kept one of its instrument and pitch sounds is left out,
    and one that would sound into the next onset of its instrument and pitch is cut: so the piece
    is canonical again, and no kept note has changed.

    Args:
        kept: all bars of the piece and the notes that stay.
        new: the same bars and the notes that come in, canonical.
    """
    is_new = np.repeat([False, True], [kept.num_notes, new.num_notes])
    columns = {
        name: np.concatenate([getattr(kept, name), getattr(new, name)]) for name in _NOTE_COLUMNS
    }
    onset = kept.bar_start_steps[columns["bar"]] + columns["onset_steps"]
    voice = columns["instrument"].astype(np.int64) * 128 + columns["pitch"]
    stays = np.ones(len(onset), dtype=bool)
    # Kept notes first where two begin together.
    by_voice = np.lexsort((is_new, onset, voice))
    last_voice, sounds_until = -1, 0
    for note in by_voice.tolist():
        if voice[note] != last_voice:
            last_voice, sounds_until = voice[note], 0
        if not is_new[note]:
            sounds_until = onset[note] + columns["duration_steps"][note]
        elif onset[note] < sounds_until:
            stays[note] = False
    order = by_voice[stays[by_voice]]
    duration = columns["duration_steps"].copy()
    room = np.diff(onset[order])
    is_same = np.diff(voice[order]) == 0
    too_long = is_same & is_new[order[:-1]] & (duration[order[:-1]] > room)
    within = np.searchsorted(DURATION_STEPS, room[too_long], side="right") - 1
    duration[order[:-1][too_long]] = DURATION_STEPS[within]
    columns["duration_steps"] = duration
    keys = ("pitch", "onset_steps", "instrument", "bar")
    canonical = np.lexsort([columns[name] for name in keys])
    canonical = canonical[stays[canonical]]
    return replace(kept, **{name: values[canonical] for name, values in columns.items()})
