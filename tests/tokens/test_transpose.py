from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import TokenError
from meloformer.midi.grid import DRUMS
from meloformer.tokens.check import check
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.transpose import transpose, transpositions
from meloformer.tokens.vocabulary import INDEX_OF, KIND_OF, Kind
from tests.tokens.pieces import ids_of, quantised_pieces

NOTES = "#D T:0 P:36 L:6 V:66 #P0 T:0 P:60 L:24 V:66 P:67 EOS"


@settings(deadline=None)
@given(quantised_pieces(pitches=(20, 100)), st.integers(-20, 27))
def test_transposing_moves_the_melodic_notes_and_nothing_else(piece, semitones):
    moved = decode(transpose(encode(piece), semitones))
    shift = np.where(piece.instrument == DRUMS, 0, semitones)
    assert moved == replace(piece, pitch=piece.pitch + shift)


@settings(deadline=None)
@given(quantised_pieces(pitches=(20, 100)), st.integers(-20, 27))
def test_transposing_back_returns_every_token(piece, semitones):
    ids = encode(piece)
    moved = transpose(ids, semitones)
    check(moved)
    assert moved.dtype == ids.dtype
    assert np.array_equal(transpose(moved, -semitones), ids)


@settings(deadline=None)
@given(quantised_pieces())
def test_the_ends_of_the_range_fit_and_the_next_semitone_does_not(piece):
    ids = encode(piece)
    lowest, highest = transpositions(ids)
    for semitones in (lowest, highest):
        check(transpose(ids, semitones))
    for semitones in (lowest - 1, highest + 1):
        with pytest.raises(TokenError, match=rf"allowed for this piece: {lowest}\.\.{highest}"):
            transpose(ids, semitones)


@pytest.mark.parametrize(
    ("semitones", "chord", "key"),
    [(0, "Cmaj7", "A_minor"), (1, "C#maj7", "Bb_minor"), (-1, "Bmaj7", "Ab_minor")],
)
def test_chord_and_key_turn_with_the_notes(semitones, chord, key):
    ids = ids_of(f"BOS KEY:A_minor BAR:Cmaj7 4/4 TEMPO:120 BAR:N {NOTES}")
    moved = ids_of(f"BOS KEY:{key} BAR:{chord} 4/4 TEMPO:120 BAR:N {NOTES}")
    is_pitch = KIND_OF[ids] == Kind.PITCH
    assert np.array_equal(transpose(ids, semitones)[~is_pitch], moved[~is_pitch])
    pitches = INDEX_OF[transpose(ids, semitones)[is_pitch]]
    assert pitches.tolist() == [36, 60 + semitones, 67 + semitones]


def test_a_piece_of_drums_stays_as_it_is():
    ids = ids_of("BOS BAR:N 4/4 TEMPO:120 #D T:0 P:0 L:6 V:66 P:127 EOS")
    assert np.array_equal(transpose(ids, 11), ids)
