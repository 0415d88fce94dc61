from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from meloformer.midi.grid import METRE_INDEX, METRE_STEPS, METRES
from meloformer.midi.harmony import (
    CHORD_INTERVALS,
    NO_CHORD,
    bar_chords,
    estimate_key,
    estimate_keys,
    joined_bar_chords,
)
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens import vocabulary
from tests.midi.pieces import canonical_piece, canonical_pieces

FOUR_FOUR = METRE_INDEX[4, 4]


def piece_of_chords(*bars: list[int], instrument: int = 1) -> QuantisedPiece:
    """One whole-bar chord per bar."""
    notes = [(b, instrument, 0, p, 96, 66) for b, pitches in enumerate(bars) for p in pitches]
    return canonical_piece([FOUR_FOUR] * len(bars), [40] * len(bars), notes)


def names(piece: QuantisedPiece) -> list[str]:
    return [vocabulary.chord_name(index) for index in bar_chords(piece)]


def test_chords_are_named_by_their_notes():
    piece = piece_of_chords(
        [60, 64, 67],
        [57, 60, 64],
        [59, 62, 65],
        [56, 60, 64],
        [53, 57, 60, 64],
        [50, 53, 57, 60],
        [55, 59, 62, 65],
    )
    assert names(piece) == ["Cmaj", "Amin", "Bdim", "Abaug", "Fmaj7", "Dmin7", "Gdom7"]


def test_inversions_keep_their_root():
    assert names(piece_of_chords([64, 67, 72], [67, 72, 76])) == ["Cmaj", "Cmaj"]


def test_the_bass_decides_between_chords_of_the_same_notes():
    augmented = [60, 64, 68]
    assert names(piece_of_chords(augmented, [64, 68, 72])) == ["Caug", "Eaug"]


@pytest.mark.parametrize("pitches", [[60], [60, 72], list(range(60, 72))])
def test_one_pitch_class_or_all_twelve_make_no_chord(pitches: list[int]):
    assert names(piece_of_chords(pitches)) == ["N"]


def test_drums_make_no_chord_and_no_key():
    drums = piece_of_chords([36, 40, 43], instrument=0)
    assert names(drums) == ["N"]
    assert estimate_key(drums) is None


def test_a_held_chord_counts_in_every_bar_it_sounds_in_and_silence_in_none():
    notes = [(0, 1, 0, pitch, 192, 66) for pitch in (60, 64, 67)] + [(3, 1, 0, 60, 24, 66)]
    piece = canonical_piece([FOUR_FOUR] * 4, [40] * 4, notes)
    assert names(piece) == ["Cmaj", "Cmaj", "N", "N"]


@pytest.mark.parametrize(
    ("scale", "tonic", "expected"),
    [((0, 2, 4, 5, 7, 9, 11), 60, 0), ((0, 2, 3, 5, 7, 8, 11), 57, 12 + 9)],
)
def test_a_scale_that_rests_on_its_tonic_and_fifth_gives_its_key(scale, tonic, expected):
    notes = [(0, 1, 6 * n, tonic + step, 6, 66) for n, step in enumerate(scale)]
    notes += [(1, 1, 0, tonic, 48, 66), (1, 1, 48, tonic + 7, 24, 66)]
    piece = canonical_piece([FOUR_FOUR] * 2, [40] * 2, notes)
    assert estimate_key(piece) == expected


def test_chord_numbers_agree_with_the_vocabulary():
    assert NO_CHORD == vocabulary.NO_CHORD
    assert len(CHORD_INTERVALS) == len(vocabulary.CHORD_QUALITIES)


@st.composite
def pitched_pieces(draw: st.DrawFn) -> QuantisedPiece:
    metres = draw(st.lists(st.integers(0, len(METRES) - 1), min_size=1, max_size=5))
    notes = []
    for _ in range(draw(st.integers(1, 30))):
        bar = draw(st.integers(0, len(metres) - 1))
        onset = draw(st.integers(0, int(METRE_STEPS[metres[bar]]) - 1))
        instrument = draw(st.sampled_from([0, 1, 2]))
        pitch = draw(st.integers(30, 100))
        notes.append((bar, instrument, onset, pitch, draw(st.sampled_from([1, 24, 96])), 66))
    return canonical_piece(metres, [0] * len(metres), notes)


@given(pitched_pieces(), st.integers(-12, 12))
def test_transposing_turns_every_chord_and_the_key_by_as_much(
    piece: QuantisedPiece, semitones: int
):
    pitched = piece.instrument != 0
    moved_pitch = np.where(pitched, piece.pitch + semitones, piece.pitch).astype(np.int32)
    moved = replace(piece, pitch=moved_pitch)
    chords, qualities = bar_chords(piece), len(CHORD_INTERVALS)
    turned = (chords // qualities + semitones) % 12 * qualities + chords % qualities
    expected = np.where(chords == NO_CHORD, NO_CHORD, turned)
    assert bar_chords(moved).tolist() == expected.tolist()
    key = estimate_key(piece)
    if key is not None:
        key = (key + semitones) % 12 + key // 12 * 12
    assert estimate_key(moved) == key


@given(pitched_pieces())
def test_a_chord_shares_two_notes_with_what_sounds_in_its_bar(piece: QuantisedPiece):
    starts = piece.bar_start_steps.tolist()
    for bar, chord in enumerate(bar_chords(piece).tolist()):
        sounding = set()
        for n in range(piece.num_notes):
            onset = starts[piece.bar[n]] + piece.onset_steps[n]
            ends_after = onset + piece.duration_steps[n] > starts[bar]
            if piece.instrument[n] and onset < starts[bar + 1] and ends_after:
                sounding.add(int(piece.pitch[n]) % 12)
        if chord == NO_CHORD:
            continue
        root, quality = divmod(chord, len(CHORD_INTERVALS))
        assert len(sounding & {(root + i) % 12 for i in CHORD_INTERVALS[quality]}) >= 2


@given(st.lists(canonical_pieces(), min_size=2, max_size=4))
def test_no_piece_is_heard_in_the_one_behind_it(pieces: list[QuantisedPiece]):
    joined = JoinedPieces.join(pieces)
    alone = np.concatenate([bar_chords(piece) for piece in pieces])
    assert joined_bar_chords(joined).tolist() == alone.tolist()
    assert estimate_keys(joined) == [estimate_key(piece) for piece in pieces]
