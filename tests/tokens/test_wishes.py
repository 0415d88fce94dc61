"""What was wished for is what comes, whoever chooses; what cannot come is refused beforehand."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from meloformer.errors import ConfigError
from meloformer.midi.grid import METRE_INDEX, METRE_STEPS
from meloformer.tokens.check import check
from meloformer.tokens.grammar import GrammarState
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import INDEX_OF, KIND_OF, OFFSET, VOCAB_SIZE, Kind
from meloformer.tokens.wishes import Wishes
from tests.tokens.pieces import ids_of, random_walk
from tests.tokens.wished import broken_wishes

FOUR = METRE_INDEX[4, 4]
# A bar of three steps: whatever must fit is at the edge of what does.
SHORTEST = int(METRE_STEPS.argmin())
Taste = Callable[[np.ndarray], np.ndarray]


def chosen(wishes: Wishes, score_of: Taste, patience: int = 300) -> np.ndarray:
    """The piece of somebody who always takes what pleases most of what is allowed.

    Args:
        wishes: to be kept.
        score_of: of some ids.
        patience: tokens after which bars are to end as soon as they may.
    """
    state, ids = GrammarState(wishes=wishes), []
    while not state.is_finished:
        allowed = np.flatnonzero(state.allowed())
        assert len(allowed), f"nothing is allowed after {len(ids)} tokens"
        taste = score_of if len(ids) < patience else TASTES["ends"]
        ids.append(int(allowed[taste(allowed).argmax()]))
        state.advance(ids[-1])
    return np.array(ids, dtype=np.uint16)


def by_kind(*liked: Kind, falling: bool = False) -> Taste:
    """Kinds in this order before all others; of one kind the lowest index, or the highest."""
    rank = np.zeros(len(Kind))
    rank[list(liked)] = np.arange(len(liked), 0, -1)
    score = 1e4 * rank[KIND_OF] + (1 if falling else -1) * INDEX_OF
    return lambda ids: score[ids]


# Each fights some wish: ends early, never ends a bar, plays the last first, one note too many.
TASTES = {
    "ends": by_kind(Kind.CONTROL, Kind.BAR, Kind.INSTRUMENT),
    "ends, high": by_kind(Kind.CONTROL, Kind.BAR, Kind.INSTRUMENT, falling=True),
    "stays": by_kind(Kind.PITCH, Kind.ONSET),
    "last player": by_kind(Kind.BAR, Kind.INSTRUMENT, falling=True),
    "all players": by_kind(Kind.INSTRUMENT),
    "late onsets": by_kind(Kind.CONTROL, Kind.INSTRUMENT, Kind.ONSET, Kind.BAR, falling=True),
    "high pitches": by_kind(Kind.CONTROL, Kind.BAR, Kind.PITCH, falling=True),
    "first players": by_kind(Kind.ONSET, Kind.INSTRUMENT),
}

SMALL = {
    "chords": Wishes(num_bars=5, chords=(0, 3, 84), instruments={1}),
    "all of a list": Wishes(num_bars=3, instruments={0, 5, 128}, playing=(0, 5, 128)),
    "exactly one": Wishes(num_bars=3, num_instruments=1),
    "exactly four": Wishes(num_bars=2, num_instruments=4),
    "three of five": Wishes(num_bars=3, num_instruments=3, instruments={0, 1, 2, 3, 128}),
    "five of five": Wishes(num_bars=1, num_instruments=5, instruments={0, 1, 2, 3, 128}),
    "one more than named": Wishes(num_bars=2, num_instruments=3, playing=(0, 128)),
    "entries": Wishes(num_bars=4, entries=((0, 3), (34, 0), (128, 3), (7, 1))),
    "entries of four": Wishes(num_bars=4, num_instruments=4, entries=((0, 3), (34, 1))),
    "players through a needle": Wishes(
        num_bars=5, num_instruments=5, playing=(7, 128), entries=((0, 3), (9, 4)), most_notes=1
    ),
    "all at once": Wishes(
        num_bars=2, instruments={3, 4, 5}, playing=(3, 4), entries=((5, 1),), most_notes=2,
        least_notes=1,
    ),
    "exact notes": Wishes(num_bars=3, least_notes=3, most_notes=3, metre=SHORTEST),
    "a full bar": Wishes(
        num_bars=2, instruments={128}, least_notes=6, ranges=((128, 126, 127),), metre=SHORTEST
    ),
    "full bars of two": Wishes(
        num_bars=3, instruments={9, 128}, least_notes=6, most_notes=7, entries=((9, 1),),
        ranges=((128, 126, 127), (9, 0, 1)), metre=SHORTEST,
    ),
    "a quiet beginning": Wishes(num_bars=3, instruments={2, 3}, entries=((2, 1), (3, 2))),
    "scale": Wishes(num_bars=2, scale=(0, 2, 4, 5, 7, 9, 11), instruments={0, 1}, playing=(0, 1)),
    "range": Wishes(num_bars=2, ranges=((34, 28, 52),), playing=(34,)),
    "one pitch": Wishes(num_bars=2, ranges=((34, 60, 61),), scale=(0,), instruments={34}),
}  # fmt: skip


@pytest.mark.parametrize("wish", SMALL)
def test_wishes_are_kept_against_every_taste(wish: str) -> None:
    wishes = SMALL[wish]
    for name, taste in TASTES.items():
        ids = chosen(wishes, taste)
        check(ids)
        assert not broken_wishes(ids, wishes), name


@pytest.mark.parametrize("wish", SMALL)
def test_wishes_are_kept_by_chance(wish: str) -> None:
    for seed in range(3):
        assert not broken_wishes(random_walk(seed, **vars_of(SMALL[wish])), SMALL[wish])


@pytest.mark.parametrize("taste", TASTES)
@pytest.mark.parametrize(("num_bars", "last"), [(1, 0), (3, 0), (6, 1), (16, 4), (60, 8)])
def test_who_is_asked_for_does_not_wait_for_the_end(taste: str, num_bars: int, last: int) -> None:
    late = num_bars - 1
    entries = ((9, late),) if late else ()
    wishes = Wishes(num_bars=num_bars, playing=(0, 60, 128), num_instruments=5, entries=entries)
    music = decode(chosen(wishes, TASTES[taste]))
    players = set(music.instrument.tolist())
    first = {who: int(music.bar[music.instrument == who].min()) for who in players}
    assert len(first) == 5 and first.pop(9, late) == late
    assert max(first.values()) <= last


def test_who_is_asked_for_enters_as_soon_as_bars_have_room() -> None:
    wishes = Wishes(num_bars=8, playing=(1, 2, 3, 4), entries=((9, 1),), most_notes=1)
    music = decode(chosen(wishes, TASTES["first players"]))
    players, first = np.unique(music.instrument, return_index=True)
    assert dict(zip(players.tolist(), music.bar[first].tolist(), strict=True))[9] == 1
    assert sorted(music.bar[first].tolist())[:4] == [0, 1, 2, 3]


def vars_of(wishes: Wishes) -> dict:
    return {name: getattr(wishes, name) for name in wishes.__dataclass_fields__}


@st.composite
def any_wishes(draw: st.DrawFn) -> Wishes:
    """Of few instruments and short bars, so that they stand in each other's way."""
    some = st.sampled_from([0, 1, 60, 127, 128])
    num_bars = draw(st.integers(1, 4))
    entries = draw(st.dictionaries(some, st.integers(0, num_bars - 1), max_size=2))
    least = draw(st.integers(0, 6))
    ranges = draw(
        st.dictionaries(some, st.sampled_from([(0, 0), (60, 61), (126, 127)]), max_size=2)
    )
    try:
        return Wishes(
            num_bars=num_bars,
            instruments=draw(st.none() | st.sets(some, min_size=1)),
            metre=draw(st.none() | st.just(SHORTEST)),
            chords=draw(st.sampled_from([(), (84,), (3, 0)])),
            playing=tuple(draw(st.sets(some, max_size=3)) - set(entries)),
            num_instruments=draw(st.none() | st.integers(1, 6)),
            entries=tuple(entries.items()),
            least_notes=least,
            most_notes=draw(st.none() | st.integers(least, 8)),
            scale=draw(st.sampled_from([None, (0, 1, 3, 6, 7)])),
            ranges=tuple((who, low, high) for who, (low, high) in ranges.items()),
        )
    except ConfigError:
        assume(False)
        raise


@settings(deadline=None, max_examples=60)
@given(any_wishes(), st.integers(0, 2**32), st.floats(0, 12))
def test_wishes_that_are_not_refused_come_true(wishes: Wishes, seed: int, force: float) -> None:
    """Somebody with tastes drawn by chance, of kinds and of tokens, that change with each token."""
    rng = np.random.default_rng(seed)
    of_kind = force * rng.normal(size=len(Kind))
    of_kind[[Kind.CONTROL, Kind.BAR]] += 2  # or it never ends

    def score_of(ids: np.ndarray) -> np.ndarray:
        return of_kind[KIND_OF[ids]] + force * rng.normal(size=len(ids))

    assert not broken_wishes(chosen(wishes, score_of), wishes)


def test_nothing_is_forbidden_that_breaks_no_wish() -> None:
    """Bounds that bind nowhere leave every mask as it is."""
    tight = Wishes(num_bars=3, instruments={50}, least_notes=1)
    ids = random_walk(3, **vars_of(tight))
    # Where each bar has a note of the only one who may play, he plays in time.
    loose = replace(
        tight, playing=(50,), most_notes=10**6, ranges=((50, 0, 127),), scale=tuple(range(12))
    )
    bound, free = GrammarState(wishes=loose), GrammarState(wishes=tight)
    for token_id in ids.tolist():
        assert np.array_equal(bound.allowed(), free.allowed())
        bound.advance(token_id)
        free.advance(token_id)
    assert bound.is_finished


@pytest.mark.parametrize(
    ("wishes", "beginning", "allowed"),
    [
        # The last of two bars: one who is named must come, so nobody may be skipped for later.
        (
            Wishes(num_bars=1, playing=(3, 5)),
            "BOS BAR:N 4/4 TEMPO:120",
            {Kind.INSTRUMENT: range(4)},
        ),
        # Two of three left, one due after this: the last of all is too late.
        (
            Wishes(num_bars=1, num_instruments=2, instruments=(3, 5, 7)),
            "BOS BAR:N 4/4 TEMPO:120",
            {Kind.INSTRUMENT: (3, 5)},
        ),
        # Silent before its entry; with two notes at least the last pitch is too high.
        (
            Wishes(num_bars=2, instruments=(3, 5), entries=((3, 1),), least_notes=2),
            "BOS BAR:N 1/32 TEMPO:120",
            {Kind.INSTRUMENT: (5,)},
        ),
        (
            Wishes(num_bars=2, instruments=(5,), least_notes=2),
            "BOS BAR:N 1/32 TEMPO:120 #P4 T:2",
            {Kind.PITCH: range(127)},
        ),
        (
            Wishes(num_bars=2, instruments=(5,), ranges=((5, 60, 60),), least_notes=2),
            "BOS BAR:N 1/32 TEMPO:120 #P4",
            {Kind.ONSET: range(2)},
        ),
        # As many notes as may be: the bar ends, with its chord.
        (
            Wishes(num_bars=2, most_notes=1, chords=(0, 8)),
            "BOS BAR:Cmaj 4/4 TEMPO:120 #P4 T:0 P:60 L:24 V:66",
            {Kind.BAR: (8,)},
        ),
    ],
)
def test_exactly_these_tokens_may_follow(wishes: Wishes, beginning: str, allowed: dict) -> None:
    mask = GrammarState(wishes=wishes)
    for token_id in ids_of(beginning).tolist():
        mask.advance(token_id)
    expected = [OFFSET[kind] + index for kind, indices in allowed.items() for index in indices]
    assert np.flatnonzero(mask.allowed()).tolist() == sorted(expected)


@pytest.mark.parametrize(
    ("wishes", "message"),
    [
        ({"num_bars": 2, "chords": (0, 1, 2)}, "3 chords wished for 2 bars"),
        ({"num_bars": 2, "chords": (85,)}, r"bar index 85 wished; allowed: 0\.\.84"),
        ({"num_bars": 2, "num_instruments": 0}, "0 instruments wished"),
        ({"num_bars": 2, "num_instruments": 3, "instruments": (1, 2)}, "allowed: 1 to 2"),
        ({"num_bars": 2, "num_instruments": 1, "playing": (1, 2)}, "allowed: 2 to 129"),
        ({"num_bars": 2, "playing": (3,), "instruments": (1,)}, r"\(2\) shall play and may not"),
        ({"num_bars": 2, "entries": ((3, 2),)}, r"\(2\) from bar 2: .*; allowed: 0\.\.1"),
        ({"num_bars": 2, "entries": ((3, -1),)}, "from bar -1"),
        ({"playing": (3,)}, "in a piece of any length"),
        ({"num_bars": 2, "least_notes": 3, "most_notes": 2}, "3 to 2 notes a bar wished"),
        ({"num_bars": 2, "most_notes": 0}, "0 to 0 notes a bar wished"),
        ({"least_notes": 385}, "holds 384 in a bar of 3 steps"),
        ({"least_notes": 97, "metre": FOUR, "ranges": ((5, 60, 60),)}, "1 pitches holds 96"),
        (
            {"num_bars": 2, "instruments": (3,), "entries": ((3, 1),), "least_notes": 1},
            "nobody who may play in bar 0",
        ),
        (
            {"num_bars": 2, "num_instruments": 1, "entries": ((3, 1),), "least_notes": 1},
            "nobody who may play in bar 0",
        ),
        ({"num_bars": 2, "entries": ((3, 1), (4, 1)), "most_notes": 1}, "2 instruments that enter"),
        ({"num_bars": 2, "num_instruments": 3, "most_notes": 1}, "of at most 1 notes hold 2"),
        ({"ranges": ((3, 60, 59),)}, r"Electric Grand Piano \(2\) from pitch 60 to 59 wished"),
        ({"ranges": ((3, 0, 128),)}, r"allowed: the lower first, 0\.\.127"),
        (
            {"num_bars": 1, "ranges": ((3, 61, 61),), "scale": (0,), "playing": (3,)},
            r"Electric Grand Piano \(2\) has no pitch left",
        ),
    ],
)  # fmt: skip
def test_wishes_that_nothing_can_fulfil_are_refused(wishes: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Wishes(**wishes)


def test_chords_and_pitches_bind_what_follows_a_prefix_with_bars_and_players_do_not() -> None:
    begun = ids_of("BOS BAR:N 4/4 TEMPO:120 #P4 T:0 P:1 L:24 V:66")
    state = GrammarState(begun, Wishes(num_bars=2, chords=(0, 8), ranges=((5, 60, 61),)))
    allowed = np.flatnonzero(state.allowed())
    assert allowed[KIND_OF[allowed] == Kind.BAR].tolist() == [OFFSET[Kind.BAR] + 8]
    assert INDEX_OF[allowed[KIND_OF[allowed] == Kind.PITCH]].tolist() == [60, 61]
    with pytest.raises(ConfigError, match="the prefix holds 1 bars"):
        GrammarState(begun, Wishes(num_bars=2, playing=(5,)))


def test_a_mask_of_wishes_is_the_callers_own() -> None:
    state = GrammarState(wishes=SMALL["all at once"])
    state.allowed()[:] = False
    assert state.allowed().any() and state.allowed().shape == (VOCAB_SIZE,)
