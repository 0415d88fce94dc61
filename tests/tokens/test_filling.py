import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import TokenError
from meloformer.midi.harmony import joined_bar_chords
from meloformer.midi.joined import JoinedPieces
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.attributes import prefix_length, read_prefix
from meloformer.tokens.check import check, first_violation
from meloformer.tokens.filling import Hole, fill, hole_of, is_filled, states_of_bars, unfill
from meloformer.tokens.filling_grammar import FilledState
from meloformer.tokens.hid import decode, encode, encode_bars
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import (
    EOS,
    FILL,
    KIND_OF,
    OFFSET,
    Kind,
    length_bin,
    token_name,
)
from meloformer.tokens.windows import bar_starts, cut_window, state_of_bar
from tests.tokens.pieces import ids_of, label_plainly, quantised_pieces, random_piece

HEADER = "BAR:N 4/4 TEMPO:120"
NOTE = "T:0 P:60 L:24 V:66"


def names_of(ids):
    return " ".join(token_name(token_id) for token_id in ids)


@st.composite
def windows_and_holes(draw):
    """A window of a random piece, and bars of it, instruments of it, or both."""
    piece = draw(quantised_pieces(max_bars=7))
    ids = encode(piece)
    first = draw(st.integers(0, piece.num_bars - 1))
    last = draw(st.integers(first + 1, piece.num_bars))
    window = cut_window(ids, first, last)
    num_bars = last - first
    players = sorted(set(piece.instrument.tolist()))
    chosen = draw(st.lists(st.sampled_from(players), unique=True, max_size=len(players)))
    bars = (0, 0)
    if num_bars > 1 and (not chosen or draw(st.booleans())):
        start = draw(st.integers(0, num_bars - 2))
        bars = (start, draw(st.integers(start + 1, num_bars - 1)))
    elif not chosen:
        chosen = players[:1]
    return window, Hole(first=bars[0], last=bars[1], instruments=tuple(sorted(chosen)))


def filled_walk(seed):
    """Random allowed tokens; parts of a window end more often than among equals."""
    rng = np.random.default_rng(seed)
    state, ids = FilledState(), []
    while not state.is_finished:
        allowed = np.flatnonzero(state.allowed())
        ends = allowed[np.isin(allowed, (FILL, EOS))]
        if len(ends) and rng.random() < 0.3:
            allowed = ends
        ids.append(int(rng.choice(allowed)))
        state.advance(ids[-1])
    return np.array(ids, dtype=np.uint16)


def without_length(ids, hole):
    """What comes back: a window that ends before its piece cannot say its length again."""
    if not hole.has_bars or ids[-1] == EOS:
        return ids
    return ids[KIND_OF[ids] != Kind.LENGTH]


@settings(deadline=None, max_examples=60)
@given(windows_and_holes())
def test_a_filled_window_comes_back_token_for_token(window_and_hole):
    window, hole = window_and_hole
    filled = fill(window, hole)
    assert is_filled(filled) and hole_of(filled) == hole
    back = unfill(filled)
    expected = without_length(window, hole)
    if hole.has_bars and window[-1] == EOS:
        # A window of some last bars says what remains, which is all of its bars.
        num_bars = len(bar_starts(window)) - 1
        assert read_prefix(window).length == length_bin(num_bars)
    assert names_of(back) == names_of(expected)


@settings(deadline=None, max_examples=60)
@given(windows_and_holes())
def test_a_filled_window_follows_the_grammar_token_by_token(window_and_hole):
    filled = fill(*window_and_hole)
    state = FilledState()
    for token_id in filled.tolist():
        assert state.allowed()[token_id], names_of(filled[: state.num_tokens + 1])
        state.advance(token_id)
    assert state.is_complete
    assert first_violation(filled) is None
    assert not window_and_hole[1].has_bars or state.is_finished


@settings(deadline=None, max_examples=60)
@given(windows_and_holes())
def test_the_music_of_a_filled_window_is_that_of_the_window(window_and_hole):
    window, hole = window_and_hole
    before, after = decode(window), decode(fill(window, hole))
    for name, values in vars(before).items():
        assert np.array_equal(getattr(after, name), values), name


@settings(deadline=None, max_examples=60)
@given(st.integers(0, 2**32), st.integers(2, 7), st.data())
def test_bars_read_like_a_piece_whose_bars_were_written_in_that_order(seed, num_bars, data):
    """The oracle rearranges the notes and encodes them: it knows nothing of tokens."""
    piece = random_piece(seed, num_bars, 20)
    first = data.draw(st.integers(0, num_bars - 2))
    last = data.draw(st.integers(first + 1, num_bars - 1))
    order = np.concatenate([np.arange(last, num_bars), np.arange(first), np.arange(first, last)])
    place = np.argsort(order)
    moved_bar = place[piece.bar]
    by_bar = np.argsort(moved_bar, kind="stable")
    notes = {
        name: getattr(piece, name)[by_bar]
        for name in ("instrument", "onset_steps", "pitch", "duration_steps", "velocity")
    }
    moved = type(piece)(
        bar_metre=piece.bar_metre[order],
        bar_tempo=piece.bar_tempo[order],
        bar=moved_bar[by_bar].astype(piece.bar.dtype),
        **notes,
    )
    chords = joined_bar_chords(JoinedPieces.of(piece))[order]
    filled = fill(encode(piece), Hole(first=first, last=last))
    body = filled[prefix_length(filled) : -1]
    assert names_of(body[body != FILL]) == names_of(encode_bars(moved, chords))
    num_fills = np.flatnonzero(filled == FILL)
    bars_before_fill = token_labels(filled).bar[num_fills] + 1
    assert bars_before_fill.tolist() == [0, num_bars - last, num_bars - last + first]
    assert filled[-1] == EOS


@settings(deadline=None, max_examples=60)
@given(windows_and_holes())
def test_chosen_instruments_stand_last_in_every_bar_and_both_parts_ascend(window_and_hole):
    window, hole = window_and_hole
    filled = fill(window, hole)
    body = filled[prefix_length(filled) :]
    bar: list[int] = []
    for token_id in [*body.tolist(), OFFSET[Kind.BAR]]:
        kind = KIND_OF[token_id]
        if kind == Kind.BAR:
            chosen = [i in hole.instruments for i in bar]
            assert chosen == sorted(chosen)
            for part in (True, False):
                own = [i for i, c in zip(bar, chosen, strict=True) if c == part]
                assert own == sorted(set(own))
            bar = []
        elif kind == Kind.INSTRUMENT:
            bar.append(token_id - OFFSET[Kind.INSTRUMENT])


@settings(deadline=None, max_examples=60)
@given(windows_and_holes())
def test_labels_of_a_filled_window_are_those_of_a_plain_loop(window_and_hole):
    filled = fill(*window_and_hole)
    labels, expected = token_labels(filled), label_plainly(filled)
    for name, values in vars(labels).items():
        assert values.tolist() == expected[name], name


@settings(deadline=None, max_examples=15)
@given(st.integers(0, 2**32))
def test_whatever_the_grammar_of_filled_windows_allows_decodes_and_has_one_spelling(seed):
    ids = filled_walk(seed)
    check(ids)
    assert decode(ids).num_bars == np.count_nonzero(KIND_OF[ids] == Kind.BAR)
    again = fill(unfill(ids), hole_of(ids))
    assert names_of(again[prefix_length(again) :]) == names_of(ids[prefix_length(ids) :])


@settings(deadline=None, max_examples=30)
@given(quantised_pieces())
def test_the_state_of_every_bar_is_that_of_the_bar_alone(piece):
    ids = encode(piece)
    starts = bar_starts(ids)
    expected = [state_of_bar(ids, starts, bar) for bar in range(piece.num_bars)]
    assert states_of_bars(ids, starts) == expected


def test_the_example_of_the_docs_reads_as_written():
    ids = ids_of(
        f"BOS 4/4 TEMPO:120 LENGTH:<=4 {HEADER} #P0 {NOTE} #P40 {NOTE} BAR:Cmaj #P0 {NOTE} "
        f"BAR:Gmaj 3/4 #P0 {NOTE} BAR:N #P0 {NOTE} EOS"
    )
    filled = fill(ids, Hole(first=1, last=2, instruments=(1,)))
    assert names_of(filled) == (
        f"FILL #P0 BOS 4/4 TEMPO:120 LENGTH:<=1 BAR:Gmaj 3/4 TEMPO:120 #P0 {NOTE} BAR:N #P0 {NOTE} "
        f"FILL BAR:N 4/4 #P40 {NOTE} #P0 {NOTE} FILL BAR:Cmaj #P0 {NOTE} EOS"
    )


def test_the_prefix_says_the_hole(chorale_shards):
    index = ShardFolder.open(chorale_shards).split("train")
    ids = index.read(0)
    said = read_prefix(ids)
    # Told apart from the prefix of the window: the hole is one bar.
    start = fill(ids, Hole(first=3, last=4))
    found = read_prefix(start[1:])
    assert found.length == length_bin(1) != said.length
    assert (found.key, found.density, found.instruments) == (
        said.key,
        said.density,
        said.instruments,
    )


def test_real_pieces_come_back(chorale_shards):
    index = ShardFolder.open(chorale_shards).split("train")
    rng = np.random.default_rng(0)
    for piece in range(0, index.num_pieces, 5):
        ids = index.read(piece)
        num_bars = len(bar_starts(ids)) - 1
        first = int(rng.integers(num_bars - 1))
        last = int(rng.integers(first + 1, num_bars))
        players = read_prefix(ids).instruments
        for hole in (
            Hole(first=first, last=last),
            Hole(instruments=players[:1]),
            Hole(first=first, last=last, instruments=players[-1:]),
        ):
            filled = fill(ids, hole)
            check(filled)
            assert np.array_equal(unfill(filled), ids)
            most = 3 + 2 * hole.has_bars + len(hole.instruments)
            assert len(filled) <= len(ids) + most


@pytest.mark.parametrize(
    ("hole", "found"),
    [
        (Hole(), "Hole"),
        (Hole(first=1, last=2), "window of 2 bars"),
        (Hole(first=-1, last=1), "first=-1"),
        (Hole(first=1, last=0), "last=0"),
    ],
)
def test_a_hole_that_is_not_there_is_refused(hole, found):
    ids = ids_of(f"BOS {HEADER} #P0 {NOTE} BAR:N #P0 {NOTE} EOS")
    with pytest.raises(TokenError, match=f"{found}.*; allowed: a window in bar order"):
        fill(ids, hole)


def test_a_filled_window_is_not_filled_again():
    ids = ids_of(f"BOS {HEADER} #P0 {NOTE} BAR:N #P0 {NOTE} EOS")
    filled = fill(ids, Hole(first=0, last=1))
    with pytest.raises(TokenError, match="filled already"):
        fill(filled, Hole(first=0, last=1))


@pytest.mark.parametrize(
    ("sequence", "position"),
    [
        ("FILL", 1),
        ("FILL FILL", 1),
        ("FILL #P1 #P0", 2),
        ("FILL BOS FILL", 2),
        (f"FILL BOS {HEADER} #P0 {NOTE}", 10),  # nothing stands last
        (f"FILL BOS {HEADER} #P0 {NOTE} EOS", 10),
        (f"FILL BOS {HEADER} #P0 {NOTE} FILL EOS", 11),
        (f"FILL BOS {HEADER} #P0 {NOTE} FILL FILL", 12),
        (f"FILL BOS {HEADER} #P0 {NOTE} FILL FILL FILL", 12),
        (f"FILL BOS {HEADER} #P0 {NOTE} FILL BAR:N EOS", 12),
        (f"FILL BOS {HEADER} #P0 {NOTE} FILL FILL BAR:N", 13),
        (f"FILL BOS {HEADER} #P0 {NOTE} FILL FILL BAR:N #P0 FILL", 14),
        (f"FILL #P0 BOS {HEADER} #P0 {NOTE} #P1 {NOTE}", 11),
        (f"FILL #P0 BOS {HEADER} #P1 {NOTE} #P0 {NOTE} #P0", 16),
    ],
)
def test_broken_filled_windows_stop_where_they_break(sequence, position):
    ids = ids_of(sequence)
    assert first_violation(ids) == position
    with pytest.raises(TokenError, match=f"at position {position}: "):
        check(ids)


def test_a_hole_may_end_with_an_empty_bar_and_the_bars_around_it_too():
    ids = ids_of(f"CONTINUE {HEADER} #P0 {NOTE} BAR:N BAR:N BAR:N")
    filled = fill(ids, Hole(first=1, last=2))
    assert names_of(filled) == (
        f"FILL CONTINUE {HEADER} BAR:N FILL BAR:N #P0 {NOTE} FILL BAR:N FILL"
    )
    check(filled)
    assert np.array_equal(unfill(filled), ids)
