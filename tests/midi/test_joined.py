"""Pieces laid end to end come apart again as they were."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.midi.joined import JoinedPieces
from meloformer.midi.quantised import QuantisedPiece
from tests.midi.pieces import canonical_pieces

_several = st.lists(canonical_pieces(), min_size=1, max_size=4)
_few = settings(max_examples=25)  # to draw pieces takes long


@given(_several)
@_few
def test_joined_pieces_come_apart_as_they_were(pieces: list[QuantisedPiece]):
    joined = JoinedPieces.join(pieces)
    assert [joined.piece(index) for index in range(len(joined))] == pieces
    assert joined.num_bars.tolist() == [piece.num_bars for piece in pieces]
    assert joined.num_notes.tolist() == [piece.num_notes for piece in pieces]


@given(_several)
@_few
def test_a_piece_starts_on_the_common_time_line_where_the_one_before_ends(
    pieces: list[QuantisedPiece],
):
    joined = JoinedPieces.join(pieces)
    in_piece = joined.music.start_steps - joined.start_steps[joined.piece_of_note]
    assert np.array_equal(in_piece, np.concatenate([piece.start_steps for piece in pieces]))


@given(_several)
@_few
def test_selected_pieces_are_those_and_no_others(pieces: list[QuantisedPiece]):
    joined = JoinedPieces.join(pieces)
    kept = list(range(len(pieces)))[::2]
    chosen = joined.select(kept)
    assert [chosen.piece(index) for index in range(len(chosen))] == pieces[::2]
    assert joined.select(range(len(pieces))) is joined
