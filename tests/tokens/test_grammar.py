import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import ConfigError, TokenError
from meloformer.midi.grid import METRE_INDEX, METRE_STEPS
from meloformer.tokens.check import check, first_violation
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.hid import decode, encode
from meloformer.tokens.vocabulary import EOS, INDEX_OF, KIND_OF, OFFSET, VOCAB_SIZE, Kind
from meloformer.tokens.windows import bar_starts, cut_window
from meloformer.tokens.wishes import Wishes
from tests.tokens.pieces import ids_of, quantised_pieces, random_walk

HEADER = "BAR:N 4/4 TEMPO:120"
NOTE = "#P0 T:0 P:60 L:24 V:66"


def refused_at(ids):
    """Position at which the state machine stops; None where the sequence is finished."""
    state = GrammarState()
    for position, token_id in enumerate(ids.tolist()):
        try:
            state.advance(token_id)
        except TokenError:
            return position
    return None if state.is_complete else len(ids)


@settings(deadline=None)
@given(quantised_pieces())
def test_every_token_that_encode_writes_is_allowed(piece):
    state = GrammarState()
    for token_id in encode(piece).tolist():
        assert state.allowed()[token_id]
        state.advance(token_id)
    assert state.is_finished


@settings(deadline=None)
@given(quantised_pieces())
def test_every_window_follows_the_grammar(piece):
    ids = encode(piece)
    for first in range(piece.num_bars):
        assert refused_at(cut_window(ids, first, piece.num_bars)) is None
        assert refused_at(cut_window(ids, first, first + 1)) is None


@settings(deadline=None, max_examples=300)
@given(quantised_pieces(max_bars=3, max_notes=6), st.data())
def test_check_stops_at_the_token_that_the_state_machine_refuses(piece, data):
    ids = encode(piece)
    position = data.draw(st.integers(0, len(ids) - 1))
    anything = st.one_of(st.integers(0, VOCAB_SIZE - 1), st.sampled_from(ids.tolist()))
    match data.draw(st.sampled_from(["replace", "insert", "delete", "end", "swap"])):
        case "replace":
            ids[position] = data.draw(anything)
        case "insert":
            ids = np.insert(ids, position, data.draw(anything))
        case "delete":
            ids = np.delete(ids, position)
        case "end":
            ids = ids[:position]
        case "swap":
            other = data.draw(st.integers(0, len(ids) - 1))
            ids[[position, other]] = ids[[other, position]]
    assert first_violation(ids) == refused_at(ids)


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.integers(1, 4))
def test_a_piece_of_wished_bars_ends_there_and_its_last_bar_sounds(seed, num_bars):
    music = decode(random_walk(seed, num_bars=num_bars))
    assert music.num_bars == num_bars
    assert music.bar[-1] == num_bars - 1


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 2**32), st.sets(st.integers(0, 128), min_size=1, max_size=3))
def test_only_wished_instruments_metre_and_tempo_are_sampled(seed, instruments):
    music = decode(random_walk(seed, num_bars=3, instruments=instruments, metre=7, tempo=9))
    assert set(music.instrument.tolist()) <= instruments
    assert set(music.bar_metre.tolist()) == {7}
    assert set(music.bar_tempo.tolist()) == {9}


@settings(deadline=None, max_examples=10)
@given(st.integers(0, 2**32))
def test_the_state_after_a_prefix_is_the_state_after_its_tokens(seed):
    ids = random_walk(seed, num_bars=2)
    state = GrammarState()
    for position, token_id in enumerate(ids.tolist()):
        resumed = GrammarState(ids[:position])
        assert np.array_equal(resumed.allowed(), state.allowed())
        state.advance(token_id)


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 2**32))
def test_some_token_is_allowed_until_eos(seed):
    wishes = {"num_bars": 2, "instruments": {128}, "metre": METRE_INDEX[1, 32]}
    state = GrammarState(wishes=Wishes(**wishes))
    for token_id in random_walk(seed, **wishes).tolist():
        assert state.allowed().any()
        state.advance(token_id)
    assert not state.allowed().any()


@pytest.mark.parametrize(
    ("beginning", "allowed"),
    [
        ("", "BOS CONTINUE"),
        (f"BOS {HEADER} #P0", {Kind.ONSET: range(96)}),
        ("BOS BAR:N 3/4 TEMPO:120 #P0 T:70 P:0 L:1 V:2 T:71", {Kind.PITCH: range(128)}),
        (f"BOS {HEADER} #P0 T:0 P:60", {Kind.DURATION: range(80)}),
        (f"BOS {HEADER} #P0 T:0 P:60 L:24", {Kind.VELOCITY: range(32)}),
        (f"BOS {HEADER} #P127 T:95 P:127 L:1 V:2", {Kind.BAR: range(85), Kind.CONTROL: [EOS]}),
    ],
)
def test_exactly_these_tokens_may_follow(beginning, allowed):
    mask = GrammarState(ids_of(beginning)).allowed()
    if isinstance(allowed, str):
        expected = sorted(ids_of(allowed).tolist())
    else:
        expected = [OFFSET[kind] + index for kind, indices in allowed.items() for index in indices]
    assert np.flatnonzero(mask).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("sequence", "position"),
    [
        ("", 0),
        ("EOS", 0),
        (f"{HEADER} {NOTE} EOS", 0),
        ("BOS", 1),
        ("BOS EOS", 1),
        ("BOS TEMPO:120 4/4", 2),
        ("BOS #P1 #P0", 2),
        (f"BOS #P1 KEY:C_major {HEADER} {NOTE} EOS", 2),
        ("BOS BAR:N TEMPO:120", 2),
        ("BOS BAR:N 4/4 #P0", 3),
        (f"BOS {HEADER} EOS", 4),
        (f"BOS {HEADER} {NOTE} BAR:N EOS", 10),
        (f"BOS {HEADER} {NOTE} BAR:N 4/4", 10),
        (f"BOS {HEADER} {NOTE} BAR:N TEMPO:120", 10),
        (f"BOS {HEADER} {NOTE} BAR:N TEMPO:30 3/4", 11),
        (f"BOS {HEADER} {NOTE} KEY:C_major", 9),
        (f"BOS {HEADER} {NOTE} #P0", 9),
        (f"BOS {HEADER} {NOTE} #D", 9),
        (f"BOS {HEADER} {NOTE} T:0", 9),
        (f"BOS {HEADER} {NOTE} T:96", 9),
        (f"BOS {HEADER} {NOTE} P:60", 9),
        (f"BOS {HEADER} {NOTE} L:24", 9),
        (f"BOS {HEADER} {NOTE} P:62 L:24", 10),
        (f"BOS {HEADER} {NOTE} P:62 V:66", 10),
        (f"BOS {HEADER} {NOTE} P:62 V:62 L:12", 11),
        (f"BOS {HEADER} {NOTE} T:24 L:12", 10),
        (f"BOS {HEADER} {NOTE} #P1 P:60", 10),
        (f"BOS {HEADER} {NOTE} #P1 T:0 P:60 V:66", 12),
        (f"BOS {HEADER} {NOTE} #P1 T:0 P:60 BAR:N", 12),
        (f"BOS {HEADER} {NOTE} EOS EOS", 10),
        (f"BOS {HEADER} {NOTE} PAD", 9),
        (f"BOS {HEADER} {NOTE} BOS", 9),
        (f"BOS {HEADER} #P0", 5),
        (f"BOS {HEADER} #P0 T:0", 6),
        (f"BOS {HEADER} #P0 T:0 P:60", 7),
        (f"BOS {HEADER} #P0 T:0 P:60 L:24", 8),
    ],
)
def test_broken_sequences_stop_where_they_break(sequence, position):
    ids = ids_of(sequence)
    assert refused_at(ids) == position
    assert first_violation(ids) == position
    with pytest.raises(TokenError, match=f"at position {position}: found .*; allowed here: "):
        decode(ids)


@pytest.mark.parametrize("foreign", [VOCAB_SIZE, 2**16 - 1, -1])
@pytest.mark.parametrize("position", [0, 3, 9])
def test_ids_outside_the_vocabulary_are_refused_where_they_stand(foreign, position):
    ids = ids_of(f"BOS {HEADER} {NOTE} EOS").astype(np.int64)
    ids[position] = foreign
    with pytest.raises(TokenError, match=f"at position {position}: found id {foreign} "):
        check(ids)


@pytest.mark.parametrize("ids", [np.zeros((2, 2), dtype=np.uint16), np.array([1.0, 2.0])])
def test_what_is_not_one_dimension_of_integers_is_refused(ids):
    with pytest.raises(TokenError, match="one dimension of integers"):
        check(ids)


def test_a_window_may_end_with_an_empty_bar_and_a_piece_may_not():
    window = ids_of(f"CONTINUE {HEADER} {NOTE} BAR:N")
    assert first_violation(window) is None
    assert not GrammarState(window).allowed()[EOS]


def test_a_wish_binds_what_follows_the_prefix():
    waltz = ids_of(f"BOS BAR:N 3/4 TEMPO:120 #D T:0 P:36 L:6 V:66 {NOTE} BAR:N")
    wishes = Wishes(num_bars=3, instruments={5}, metre=METRE_INDEX[4, 4], tempo=3)
    state = GrammarState(waltz, wishes)
    for kind, index in ((Kind.METRE, METRE_INDEX[4, 4]), (Kind.TEMPO, 3)):
        assert np.flatnonzero(state.allowed()).tolist() == [OFFSET[kind] + index]
        state.advance(OFFSET[kind] + index)
    allowed = np.flatnonzero(state.allowed())
    assert allowed[KIND_OF[allowed] == Kind.INSTRUMENT].tolist() == [OFFSET[Kind.INSTRUMENT] + 5]


def test_onsets_stay_below_the_length_of_their_own_bar():
    state = GrammarState(ids_of("BOS BAR:N 4/4 TEMPO:120 BAR:N 1/32 #P0"))
    onsets = INDEX_OF[np.flatnonzero(state.allowed())]
    assert onsets.tolist() == list(range(METRE_STEPS[METRE_INDEX[1, 32]]))


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"num_bars": 0}, "0 bars wished"),
        ({"num_bars": 1}, "the prefix holds 2 bars"),
        ({"instruments": set()}, "no instrument may play"),
        ({"instruments": {129}}, r"instrument index 129 wished; allowed: 0\.\.128"),
        ({"metre": -1}, "metre index -1 wished"),
        ({"tempo": 65}, r"tempo index 65 wished; allowed: 0\.\.64"),
    ],
)
def test_wishes_that_nothing_can_fulfil_are_refused(wishes, message):
    with pytest.raises(ConfigError, match=message):
        GrammarState(ids_of(f"BOS {HEADER} BAR:N"), Wishes(**wishes))


def test_a_finished_prefix_of_another_length_is_refused():
    with pytest.raises(ConfigError, match="1 bars and is finished"):
        GrammarState(ids_of(f"BOS {HEADER} {NOTE} EOS"), Wishes(num_bars=2))


def test_every_cut_at_a_bar_line_is_a_finished_window():
    walk = random_walk(5, num_bars=4)
    for start in bar_starts(walk)[1:]:
        check(walk[:start])
