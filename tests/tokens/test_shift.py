from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import TokenError
from meloformer.midi.grid import TEMPOS_BPM, VELOCITIES
from meloformer.tokens.attributes import read_prefix
from meloformer.tokens.check import check
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.shift import shift_tempo, shift_velocity, tempo_shifts, velocity_shifts
from meloformer.tokens.vocabulary import BOS
from meloformer.tokens.windows import cut_window
from tests.tokens.pieces import quantised_pieces

SHIFTS = {
    "bar_tempo": (shift_tempo, tempo_shifts, len(TEMPOS_BPM)),
    "velocity": (shift_velocity, velocity_shifts, len(VELOCITIES)),
}


# Bins of the table that a piece's tempos and velocities stand in.
INDEX = {
    "bar_tempo": lambda piece: piece.bar_tempo,
    "velocity": lambda piece: np.searchsorted(VELOCITIES, piece.velocity),
}


def windows_of(piece):
    ids = encode(piece)
    yield ids
    if piece.num_bars > 1:
        yield cut_window(ids, 1, piece.num_bars)


@pytest.mark.parametrize("changed", SHIFTS)
@given(piece=quantised_pieces(max_bars=4, max_notes=12), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_shift_changes_one_thing_of_the_music_and_by_the_same_step_everywhere(
    changed, piece, data
):
    shift, shifts, _ = SHIFTS[changed]
    for ids in windows_of(piece):
        bins = data.draw(st.integers(*shifts(ids)))
        shifted = shift(ids, bins)
        check(shifted)
        assert shifted.dtype == ids.dtype and len(shifted) == len(ids)
        before, after = decode(ids), decode(shifted)
        assert replace(after, **{changed: getattr(before, changed)}) == before
        assert np.array_equal(INDEX[changed](after), INDEX[changed](before) + bins)
        assert np.array_equal(shift(shifted, -bins), ids)
        if changed == "bar_tempo":
            assert read_prefix(shifted).tempo == read_prefix(ids).tempo + bins


@pytest.mark.parametrize("changed", SHIFTS)
@given(piece=quantised_pieces(max_bars=3, max_notes=6))
@settings(max_examples=20, deadline=None)
def test_a_shift_out_of_the_table_is_refused_with_what_is_allowed(changed, piece):
    shift, shifts, size = SHIFTS[changed]
    ids = encode(piece)
    lowest, highest = shifts(ids)
    assert -size < lowest <= 0 <= highest < size
    for bins in (lowest - 1, highest + 1):
        with pytest.raises(TokenError, match=rf"{bins} bins .*: {lowest}\.\.{highest}"):
            shift(ids, bins)


def test_what_says_no_tempo_and_no_velocity_may_be_shifted_by_anything_and_stays():
    ids = np.array([BOS], dtype=np.uint16)
    for shift, shifts, size in SHIFTS.values():
        assert shifts(ids) == (1 - size, size - 1)
        assert np.array_equal(shift(ids, size - 1), ids)
