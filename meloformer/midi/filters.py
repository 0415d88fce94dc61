"""Which pieces are music worth training on: one predicate, one reason and one flag each.

midi/limits.py refuses what no row can hold; these refuse what can be held and is not wanted. Where
onsets stand refuses nothing: steady sixteenths are music, and so is a pianist's rubato.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise

import numpy as np

from meloformer.errors import ConfigError, MidiError
from meloformer.midi import limits
from meloformer.midi.grid import (
    MAX_BAR_STEPS,
    METRE_STEPS,
    NUM_INSTRUMENTS,
    STEPS_PER_QUARTER,
    TEMPOS_BPM,
)
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.piece import Piece
from meloformer.midi.quantised import QuantisedPiece

_NUM_PITCHES = 128
_SECONDS_PER_STEP = 60.0 / (STEPS_PER_QUARTER * TEMPOS_BPM)
_MAX_SECONDS = 86_400.0
# What stands a quarter of a step off must not come out a little above. What stands further off does
# so by more than this: a quarter of the shortest tick.
_LESS_THAN_A_QUARTER_TICK = 0.125 / limits.MAX_TICKS_PER_QUARTER

# Reason, what is measured, the setting that bounds it, and what the number counts.
_PREDICATES = (
    ("too_few_bars", "num_bars", "min_bars", "bars"),
    ("too_many_bars", "num_bars", "max_bars", "bars"),
    ("too_few_notes", "num_notes", "min_notes", "notes"),
    ("too_few_pitches", "num_pitches", "min_pitches", "distinct pitches"),
    ("one_note_repeated", "repeat_share", "max_repeat_share", "of all notes are one note"),
    ("too_many_tracks", "num_tracks", "max_tracks", "instruments"),
    ("too_short", "num_seconds", "min_seconds", "seconds"),
    ("too_long_to_play", "num_seconds", "max_seconds", "seconds"),
    ("empty_bars", "empty_share", "max_empty_share", "of all bars are empty"),
    ("silent_start", "silence_seconds", "max_silence_seconds", "seconds before the first note"),
)
_SIGNS = np.array([[-1.0 if bound.startswith("min_") else 1.0] for _, _, bound, _ in _PREDICATES])
# The least and the most that each setting may be.
_ALLOWED = {
    "min_bars": (0, limits.MAX_BARS),
    "max_bars": (1, limits.MAX_BARS),
    "min_notes": (0, limits.MAX_NOTES),
    "min_pitches": (0, _NUM_PITCHES),
    "min_seconds": (0.0, _MAX_SECONDS),
    "max_seconds": (0.0, _MAX_SECONDS),
    "max_empty_share": (0.0, 1.0),
    "max_repeat_share": (0.0, 1.0),
    "max_silence_seconds": (0.0, _MAX_SECONDS),
    "max_tracks": (1, NUM_INSTRUMENTS),
}


@dataclass(frozen=True, kw_only=True)
class FilterSettings:
    """What a piece must be to be kept."""

    min_bars: int = 4
    """Fewest bars of a piece; fewer are jingles and fragments."""
    max_bars: int = 2048
    """Most bars of a piece."""
    min_notes: int = 16
    """Fewest notes of a piece."""
    min_pitches: int = 2
    """Fewest distinct pitches; of a drum kit each drum is one, so kick and snare make two."""
    min_seconds: float = 3.0
    """Shortest piece, from the first bar line to the last."""
    max_seconds: float = 3600.0
    """Longest piece, from the first bar line to the last."""
    max_empty_share: float = 0.5
    """Largest share of bars in which no note starts."""
    max_repeat_share: float = 0.95
    """Largest share of one pitch of one instrument among all notes: a steady hi-hat over a few
    kicks stays below, a stuck key does not."""
    max_silence_seconds: float = 30.0
    """Longest silence before the first note; transcribed songs start as their recordings do."""
    max_tracks: int = 32
    """Most instruments of a piece; tracks of one program are one, all drums are one."""

    def __post_init__(self) -> None:
        for low, high in (("min_bars", "max_bars"), ("min_seconds", "max_seconds")):
            if getattr(self, low) > getattr(self, high):
                raise ConfigError(
                    f"--{low} {getattr(self, low)} with --{high} {getattr(self, high)} leaves no "
                    "piece: the least must not be above the most"
                )
        for name, (least, most) in _ALLOWED.items():
            if not least <= getattr(self, name) <= most:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed {least} to {most}")


def check_quality(quantised: QuantisedPiece, settings: FilterSettings) -> None:
    """Refuse a piece that is not wanted; the first predicate that fails names the reason.

    Args:
        quantised: the piece.
        settings: what is wanted.

    Raises:
        MidiError: too_few_bars, too_many_bars, too_few_notes, too_few_pitches, one_note_repeated,
            too_many_tracks, too_short, too_long_to_play, empty_bars or silent_start.
    """
    error = quality_errors(JoinedPieces.of(quantised), settings)[0]
    if error is not None:
        raise error


def quality_errors(joined: JoinedPieces, settings: FilterSettings) -> list[MidiError | None]:
    """What `check_quality` raises for each piece, None for one that is wanted.

    Args:
        joined: the pieces.
        settings: what is wanted.
    """
    errors: list[MidiError | None] = [None] * len(joined)
    measures = _measures(joined, settings)
    found = np.array([measures[measure] for _, measure, _, _ in _PREDICATES], np.float64)
    allowed = [float(getattr(settings, bound)) for _, _, bound, _ in _PREDICATES]
    fails = _SIGNS * found > _SIGNS * np.array(allowed)[:, None]
    for index in np.flatnonzero(fails.any(axis=0)).tolist():
        first = int(fails[:, index].argmax())
        reason, _, bound, what = _PREDICATES[first]
        errors[index] = MidiError(
            reason,
            f"{round(float(found[first, index]), 3):g} {what}; "
            f"allowed {'from' if bound.startswith('min_') else 'up to'} {allowed[first]:g} "
            f"(--{bound})",
        )
    return errors


def bar_seconds(quantised: QuantisedPiece) -> np.ndarray:
    """Length of each bar.

    Returns:
        (num_bars,) float64 seconds.
    """
    return METRE_STEPS[quantised.bar_metre] * _SECONDS_PER_STEP[quantised.bar_tempo]


def off_grid_share(piece: Piece) -> float:
    """Share of one piece, as `off_grid_shares` finds for many."""
    return float(off_grid_shares([piece])[0])


def off_grid_shares(pieces: Sequence[Piece]) -> np.ndarray:
    """Share of each piece's onsets that stand further than a quarter of a step from the grid.

    Engraved music scores 0, since a file's own ticks are finer than that. Onsets that fall anywhere
    score one half: half of every step lies further off.

    Args:
        pieces: at least one.

    Returns:
        (P,) float64.
    """
    onset_steps = [
        piece.notes.onset_ticks * (STEPS_PER_QUARTER / piece.ticks_per_quarter) for piece in pieces
    ]
    to_grid = np.concatenate(onset_steps)
    to_grid -= np.rint(to_grid)
    is_off = np.abs(to_grid, out=to_grid) > 0.25 + _LESS_THAN_A_QUARTER_TICK
    ends = list(accumulate(map(len, onset_steps), initial=0))
    shares = [np.count_nonzero(is_off[start:end]) / (end - start) for start, end in pairwise(ends)]
    return np.array(shares)


def _measures(joined: JoinedPieces, settings: FilterSettings) -> dict[str, np.ndarray]:
    """What the predicates judge, (P,) each."""
    music, num_notes = joined.music, joined.num_notes
    starts, first_note = joined.first_bar[:-1], joined.first_note[:-1]
    bar, instrument = music.bar, music.instrument

    num_cells = len(joined) * _NUM_PITCHES
    cell = np.arange(0, num_cells, _NUM_PITCHES).repeat(num_notes)
    cell += music.pitch
    num_same = np.bincount(cell, minlength=num_cells).reshape(-1, _NUM_PITCHES)
    num_repeats = num_same.max(axis=1)
    # No note comes more often than its pitch: few pieces need a look at each instrument.
    for index in np.flatnonzero(num_repeats / num_notes > settings.max_repeat_share).tolist():
        notes = slice(*joined.first_note[index : index + 2].tolist())
        num_repeats[index] = np.bincount(
            instrument[notes] * _NUM_PITCHES + music.pitch[notes]
        ).max()

    # Where an instrument comes in in a bar, with the first of its onsets there.
    is_head = np.empty(len(bar), bool)
    is_head[0] = True
    np.not_equal(bar[1:], bar[:-1], out=is_head[1:])
    is_head[1:] |= instrument[1:] != instrument[:-1]
    heads = np.flatnonzero(is_head)
    head_bar = bar[heads]
    plays = np.zeros((len(joined), NUM_INSTRUMENTS), np.int64)
    plays[joined.piece_of_note[heads], instrument[heads]] = 1
    sounds = np.zeros(music.num_bars, np.int64)
    sounds[head_bar] = 1
    place = head_bar * MAX_BAR_STEPS + music.onset_steps[heads]
    first_place = np.minimum.reduceat(place, heads.searchsorted(first_note))
    first, first_onset = np.divmod(first_place, MAX_BAR_STEPS)

    # One sum for each piece: those of `reduceat` differ in their last digit.
    seconds = bar_seconds(music)
    lines = zip(starts.tolist(), first.tolist(), joined.first_bar[1:].tolist(), strict=True)
    sums = [(seconds[a:b].sum() if b > a else 0.0, seconds[a:c].sum()) for a, b, c in lines]
    seconds_before, num_seconds = np.array(sums).T
    return {
        "num_bars": joined.num_bars,
        "num_notes": num_notes,
        "num_pitches": np.minimum(num_same, 1).sum(axis=1),
        "num_tracks": plays.sum(axis=1),
        "repeat_share": num_repeats / num_notes,
        "num_seconds": num_seconds,
        "empty_share": 1.0 - np.add.reduceat(sounds, starts) / joined.num_bars,
        "silence_seconds": seconds_before + first_onset * _SECONDS_PER_STEP[music.bar_tempo[first]],
    }
