import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import TokenError
from meloformer.midi.grid import METRE_INDEX
from meloformer.midi.harmony import bar_chords, estimate_key
from meloformer.midi.joined import JoinedPieces
from meloformer.midi.quantised import QuantisedPiece
from meloformer.tokens.attributes import Attributes, attributes_of, joined_attributes, read_prefix
from meloformer.tokens.hid import decode, decode_bar, encode, encode_bars, encode_pieces
from meloformer.tokens.vocabulary import (
    INDEX_OF,
    KIND_OF,
    OFFSET,
    Kind,
    density_bin,
    length_bin,
    token_name,
)
from meloformer.tokens.windows import bar_starts
from tests.tokens.pieces import (
    encode_bars_plainly,
    ids_of,
    notes_of_bars,
    piece_of,
    quantised_pieces,
    random_walk,
    read_plainly,
)


def names_of(ids):
    return [token_name(i) for i in ids]


def without_chords(ids):
    return np.where(KIND_OF[ids] == Kind.BAR, OFFSET[Kind.BAR], ids)


def test_two_bars_read_as_the_format_is_written():
    notes = [
        (0, 0, 0, 36, 6, 66),
        (0, 1, 0, 60, 24, 66),
        (0, 1, 0, 64, 24, 66),
        (0, 1, 24, 62, 12, 66),
        (1, 1, 0, 60, 12, 66),
        (1, 1, 12, 60, 12, 62),
    ]
    piece = piece_of([METRE_INDEX[4, 4], METRE_INDEX[3, 4]], [40, 40], notes)
    written = ids_of(
        "BAR:N 4/4 TEMPO:120 #D T:0 P:36 L:6 V:66 #P0 T:0 P:60 L:24 V:66 P:64 T:24 P:62 L:12 "
        "BAR:Cmaj 3/4 #P0 T:0 P:60 L:12 V:66 T:12 P:60 V:62"
    )
    assert encode_bars(piece, np.array([84, 0])).tolist() == written.tolist()


@settings(deadline=None)
@given(quantised_pieces())
def test_decode_returns_what_was_encoded(piece):
    assert decode(encode(piece)) == piece


@settings(deadline=None)
@given(quantised_pieces())
def test_bars_hold_the_tokens_that_a_plain_loop_writes(piece):
    bars = encode_bars(piece, np.zeros(piece.num_bars, dtype=np.int32))
    kinds_and_indices = zip(KIND_OF[bars].tolist(), INDEX_OF[bars].tolist(), strict=True)
    assert list(kinds_and_indices) == encode_bars_plainly(piece)


@settings(deadline=None)
@given(quantised_pieces())
def test_prefix_says_what_the_piece_is(piece):
    said = read_prefix(encode(piece))
    quarters = piece.bar_start_steps[-1] / 24
    assert said.metre == piece.bar_metre[0]
    assert said.tempo == piece.bar_tempo[0]
    assert said.key == estimate_key(piece)
    assert said.length == length_bin(piece.num_bars)
    assert said.density == density_bin(piece.num_notes / quarters)
    assert list(said.instruments) == sorted(set(piece.instrument.tolist()))


def test_a_prefix_says_only_what_it_is_given():
    piece = piece_of([5], [40], [(0, 1, 0, 60, 1, 2)])
    said = Attributes(metre=5, instruments=(1,))
    ids = encode(piece, said)
    assert read_prefix(ids) == said
    assert np.array_equal(ids[bar_starts(ids)[0] :], encode(piece)[bar_starts(encode(piece))[0] :])


@settings(deadline=None)
@given(quantised_pieces())
def test_bar_tokens_carry_the_chords_of_their_bars(piece):
    ids = encode(piece)
    is_bar = KIND_OF[ids] == Kind.BAR
    assert INDEX_OF[ids[is_bar]].tolist() == bar_chords(piece).tolist()


@settings(deadline=None)
@given(quantised_pieces())
def test_any_bar_decodes_alone(piece):
    ids = encode(piece)
    for bar in range(piece.num_bars):
        assert decode_bar(ids, bar) == notes_of_bars(piece, bar, bar + 1)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_whatever_the_grammar_samples_decodes_to_what_a_plain_loop_reads(seed, num_bars):
    walk = random_walk(seed, num_bars=num_bars)
    assert decode(walk) == read_plainly(walk)


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(1, 5))
def test_a_sampled_sequence_is_the_spelling_that_encode_gives_its_music(seed, num_bars):
    walk = random_walk(seed, num_bars=num_bars)
    music = decode(walk)
    spelt = encode(music)
    assert decode(spelt) == music
    body = walk[bar_starts(walk)[0] :]
    if was_not_cut(walk, music):
        assert np.array_equal(without_chords(spelt[bar_starts(spelt)[0] :]), without_chords(body))


def was_not_cut(ids, music):
    """Whether every duration, spelt out note by note, is the one that the tokens state."""
    kind, said = KIND_OF[ids], []
    duration = None
    for position in np.flatnonzero((kind == Kind.PITCH) | (kind == Kind.DURATION)):
        if kind[position] == Kind.PITCH:
            said.append(duration)
        else:
            duration = names_of(ids[[position]])[0]
            said[-1] = duration
    return said == [f"L:{steps}" for steps in music.duration_steps]


def test_overlapping_notes_of_one_pitch_are_cut_to_the_grid_and_others_are_not():
    ids = ids_of(
        "BOS BAR:N 4/4 TEMPO:120 #P0 T:0 P:60 L:216 V:66 P:64 T:90 P:60 BAR:N #P1 T:0 P:60 L:24 "
        "V:66 BAR:N #P0 T:0 P:64 L:24 V:66 EOS"
    )
    music = decode(ids)
    # 90 and 192 are on the grid; the second P:60 of the piano meets no later one.
    assert music.duration_steps.tolist() == [90, 192, 216, 24, 24]


def test_a_piece_without_notes_is_refused():
    with pytest.raises(TokenError, match="at least one note"):
        encode(piece_of([0], [0], []))


def test_a_window_of_empty_bars_decodes():
    piece = piece_of([5, 5, 5], [40, 40, 40], [(2, 1, 0, 60, 1, 2)])
    empty = decode(encode(piece)[: bar_starts(encode(piece))[2]])
    assert (empty.num_bars, empty.num_notes) == (2, 0)


def test_decode_refuses_a_bar_that_the_sequence_does_not_have():
    ids = encode(piece_of([5], [40], [(0, 1, 0, 60, 1, 2)]))
    with pytest.raises(TokenError, match=r"bar 1: allowed 0\.\.0"):
        decode_bar(ids, 1)


@given(st.lists(quantised_pieces(), min_size=2, max_size=4))
def test_pieces_encoded_together_are_as_each_alone(pieces: list[QuantisedPiece]):
    joined = JoinedPieces.join(pieces)
    attributes = joined_attributes(joined)
    assert attributes == [attributes_of(piece) for piece in pieces]
    for piece, together in zip(pieces, encode_pieces(joined, attributes), strict=True):
        assert together.ids.tolist() == encode(piece).tolist()
        assert together.bar_starts.tolist() == bar_starts(together.ids).tolist()
        assert together.bar_starts.dtype == bar_starts(together.ids).dtype
