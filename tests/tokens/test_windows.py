from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import TokenError
from meloformer.tokens.attributes import (
    ATTRIBUTE_KINDS,
    Attributes,
    drop_attributes,
    prefix_length,
    read_prefix,
    write_prefix,
)
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.vocabulary import (
    BOS,
    CONTINUE,
    EOS,
    KIND_OF,
    VOCAB_SIZE,
    Kind,
    length_bin,
)
from meloformer.tokens.windows import (
    bar_starts,
    cut_tail,
    cut_window,
    summary_windows,
    window_length,
)
from tests.tokens.pieces import ids_of, notes_of_bars, quantised_pieces


def windows_of(piece):
    return [
        (first, last)
        for first in range(piece.num_bars)
        for last in range(first + 1, piece.num_bars + 1)
    ]


@settings(deadline=None, max_examples=60)
@given(quantised_pieces())
def test_every_window_decodes_to_the_notes_of_its_bars(piece):
    ids = encode(piece)
    for first, last in windows_of(piece):
        window = cut_window(ids, first, last)
        assert decode(window) == notes_of_bars(piece, first, last)
        assert np.array_equal(cut_window(ids, first, last, bar_starts(ids)), window)


@settings(deadline=None, max_examples=60)
@given(quantised_pieces())
def test_window_length_is_an_upper_bound_and_exact_for_the_whole_piece(piece):
    ids = encode(piece)
    starts = bar_starts(ids)
    firsts, lasts = np.array(windows_of(piece)).T
    bounds = window_length(prefix_length(ids), starts, firsts, lasts)
    for (first, last), bound in zip(windows_of(piece), bounds, strict=True):
        assert window_length(prefix_length(ids), starts, first, last) == bound
        assert bound - 2 <= len(cut_window(ids, first, last)) <= bound
    assert window_length(prefix_length(ids), starts, 0, piece.num_bars) == len(ids)


@settings(deadline=None, max_examples=60)
@given(quantised_pieces())
def test_the_prefix_of_a_window_says_where_it_stands(piece):
    ids = encode(piece)
    whole = read_prefix(ids)
    for first, last in windows_of(piece):
        window = cut_window(ids, first, last)
        said = read_prefix(window)
        assert window[0] == (CONTINUE if first else BOS)
        assert (window[-1] == EOS) == (last == piece.num_bars)
        assert said.metre == piece.bar_metre[first]
        assert said.tempo == piece.bar_tempo[first]
        assert said.length == length_bin(piece.num_bars - first)
        assert (said.key, said.density) == (whole.key, whole.density)
        assert said.instruments == whole.instruments


@settings(deadline=None, max_examples=60)
@given(quantised_pieces())
def test_windows_in_a_row_hold_every_note_once(piece):
    ids = encode(piece)
    cuts = [*range(0, piece.num_bars, 2), piece.num_bars]
    windows = [decode(cut_window(ids, a, b)) for a, b in pairwise(cuts)]
    assert sum(window.num_notes for window in windows) == piece.num_notes


def test_the_first_bar_of_a_window_states_metre_and_tempo_once():
    ids = ids_of(
        "BOS BAR:N 4/4 TEMPO:120 BAR:N 3/4 BAR:N TEMPO:60 BAR:N 2/4 TEMPO:30 BAR:N "
        "#P0 T:0 P:60 L:24 V:66 EOS"
    )
    headers = ["3/4 TEMPO:120 BAR:N TEMPO:60", "3/4 TEMPO:60 BAR:N 2/4 TEMPO:30", "2/4 TEMPO:30"]
    for first, header in enumerate(headers, start=1):
        expected = ids_of(f"CONTINUE BAR:N {header}")
        assert cut_window(ids, first, 5)[: len(expected)].tolist() == expected.tolist()


def test_a_window_leaves_the_piece_as_it_was():
    ids = ids_of("BOS 4/4 BAR:N 4/4 TEMPO:120 BAR:N #P0 T:0 P:60 L:24 V:66 EOS")
    kept = ids.copy()
    for first in (0, 1):
        cut_window(ids, first, 2)[:] = 0
    assert np.array_equal(ids, kept)


@pytest.mark.parametrize(("first", "last"), [(-1, 1), (0, 0), (1, 1), (0, 3), (2, 3)])
def test_bars_that_are_not_there_are_refused(first, last):
    ids = ids_of("BOS BAR:N 4/4 TEMPO:120 BAR:N #P0 T:0 P:60 L:24 V:66 EOS")
    with pytest.raises(TokenError, match="the piece has 2; allowed: 0 <= first < last <= 2"):
        cut_window(ids, first, last)


@pytest.mark.parametrize("end", ["EOS", ""])
def test_a_window_of_a_window_is_refused(end):
    start = "CONTINUE" if end else "BOS"
    ids = ids_of(f"{start} BAR:N 4/4 TEMPO:120 #P0 T:0 P:60 L:24 V:66 {end}")
    with pytest.raises(TokenError, match="cut the piece itself"):
        cut_window(ids, 0, 1)
    with pytest.raises(TokenError, match="cut the piece itself"):
        summary_windows(ids, bar_starts(ids), max_tokens=100)


@settings(deadline=None)
@given(quantised_pieces(), st.lists(st.booleans(), min_size=6, max_size=6))
def test_dropped_attributes_leave_the_others_and_every_bar(piece, keep):
    ids = encode(piece)
    left = drop_attributes(ids, np.array(keep))
    dropped = {kind for kind, kept in zip(ATTRIBUTE_KINDS, keep, strict=True) if not kept}
    prefix = ids[: prefix_length(ids)]
    expected = [i for i in prefix.tolist() if Kind(KIND_OF[i]) not in dropped]
    assert left[: prefix_length(left)].tolist() == expected
    assert np.array_equal(left[prefix_length(left) :], ids[prefix_length(ids) :])
    assert decode(left) == piece


@given(
    st.builds(
        Attributes,
        metre=st.none() | st.integers(0, 108),
        tempo=st.none() | st.integers(0, 64),
        key=st.none() | st.integers(0, 23),
        length=st.none() | st.integers(0, 15),
        density=st.none() | st.integers(0, 15),
        instruments=st.sets(st.integers(0, 128)).map(lambda chosen: tuple(sorted(chosen))),
    )
)
def test_a_written_prefix_reads_back(attributes):
    assert read_prefix(write_prefix(attributes)) == attributes


def test_bars_start_at_the_bar_tokens_and_at_no_other_token_of_the_vocabulary():
    ids = np.arange(VOCAB_SIZE, dtype=np.uint16)
    expected = [*np.flatnonzero(KIND_OF == Kind.BAR).tolist(), VOCAB_SIZE]
    assert bar_starts(ids).tolist() == expected
    assert bar_starts(ids.astype(np.int64)).tolist() == expected


def piece_of_bars(lengths):
    """A piece whose bars take so many tokens; nothing but the bar tokens has a meaning."""
    bars = [[ids_of("BAR:N")[0], *[ids_of("T:0")[0]] * (length - 1)] for length in lengths]
    ids = np.array([BOS, *[i for bar in bars for i in bar], EOS], dtype=np.uint16)
    return ids, bar_starts(ids)


def test_windows_for_summaries_share_the_overlap_and_reach_the_end():
    ids, starts = piece_of_bars([1] * 400)
    windows = summary_windows(ids, starts, max_tokens=10_000)
    assert windows == [(0, 160), (144, 304), (288, 400)]
    assert summary_windows(*piece_of_bars([1] * 160), max_tokens=10_000) == [(0, 160)]
    assert summary_windows(*piece_of_bars([1] * 161), max_tokens=10_000)[1:] == [(144, 161)]


def test_a_window_for_summaries_counts_what_its_cut_adds():
    # BOS and EOS beside two bars of 10; a later window also states its metre and tempo.
    ids, starts = piece_of_bars([10, 10])
    assert summary_windows(ids, starts, max_tokens=22, overlap=0) == [(0, 2)]
    assert summary_windows(ids, starts, max_tokens=21, overlap=0) == [(0, 1), (1, 2)]
    assert summary_windows(ids, starts, max_tokens=13, overlap=0) == [(0, 1)]


def test_a_bar_too_long_for_any_window_stands_in_none():
    ids, starts = piece_of_bars([5, 99, 5, 5, 99])
    assert summary_windows(ids, starts, max_tokens=50) == [(0, 1), (2, 4)]
    assert summary_windows(*piece_of_bars([99, 99]), max_tokens=50) == []


@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=40),
    st.integers(1, 12),
    st.integers(4, 120),
    st.integers(0, 8),
)
def test_windows_for_summaries_fit_move_on_and_leave_out_only_what_fits_nowhere(
    lengths, max_bars, max_tokens, overlap
):
    ids, starts = piece_of_bars(lengths)
    windows = summary_windows(
        ids, starts, max_bars=max_bars, max_tokens=max_tokens, overlap=overlap
    )

    def length_of(first, last):
        return window_length(1, starts, first, last)

    for first, last in windows:
        assert 0 < last - first <= max_bars and length_of(first, last) <= max_tokens
        longest = last == len(lengths) or last - first == max_bars
        assert longest or length_of(first, last + 1) > max_tokens
    for (first, last), (next_first, next_last) in pairwise(windows):
        assert first < next_first and last < next_last
        assert last - next_first <= min(overlap, (last - first) // 2)
        as_many = last - next_first == min(overlap, (last - first) // 2)
        assert as_many or next_first > last or length_of(next_first - 1, last + 1) > max_tokens
    held = {bar for first, last in windows for bar in range(first, last)}
    assert held == {b for b in range(len(lengths)) if length_of(b, b + 1) <= max_tokens}


@settings(deadline=None, max_examples=40)
@given(quantised_pieces())
def test_a_tail_of_what_is_written_is_the_window_that_training_will_cut(piece) -> None:
    ids = encode(piece)
    starts = bar_starts(ids)
    for first, last in windows_of(piece):
        if first and last < piece.num_bars:
            tail = cut_tail(ids[: starts[last]], first, piece.num_bars - first)
            assert np.array_equal(tail, cut_window(ids, first, last))
