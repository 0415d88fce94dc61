"""Bars and instruments written anew: what is kept stays note for note, whatever is written."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.generation.editing import continue_piece, rewrite_bars, write_instruments
from meloformer.generation.notices import Notice, NoticeCode
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.render import to_piece
from meloformer.tokens.check import first_violation
from meloformer.tokens.filling import fill, hole_of, is_filled, unfill
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import EOS, FILL, KIND_OF, Kind
from tests.generation.edited_pieces import (
    FEW,
    FILLING,
    PLAIN,
    a_model,
    a_piece,
    check_edited,
    notes_where,
    quiet,
    recorded,
)
from tests.tokens.pieces import random_piece


@st.composite
def pieces_and_bars(draw: st.DrawFn) -> tuple[QuantisedPiece, int, int]:
    piece = random_piece(draw(st.integers(0, 2**32)), draw(st.integers(1, 6)), 20)
    first = draw(st.integers(0, piece.num_bars - 1))
    return piece, first, draw(st.integers(first + 1, piece.num_bars))


@settings(deadline=None, max_examples=8)
@given(pieces_and_bars(), st.sampled_from([FILLING, PLAIN]))
def test_all_but_the_rewritten_bars_stays_note_for_note(drawn, model) -> None:
    piece, first, last = drawn
    after = rewrite_bars(model, piece, first, last, FEW, say=quiet)
    check_edited(piece, after, lambda bar, _: not first <= bar < last)
    assert set(after.instrument.tolist()) <= set(piece.instrument.tolist())


@settings(deadline=None, max_examples=8)
@given(pieces_and_bars(), st.sets(st.integers(0, 128), min_size=1, max_size=3))
def test_all_but_the_written_instruments_stays_note_for_note(drawn, wished) -> None:
    piece, first, last = drawn
    after = rewrite_bars(FILLING, piece, first, last, FEW, instruments=wished, say=quiet)
    check_edited(
        piece,
        after,
        lambda bar, instrument: not (first <= bar < last and instrument in wished),
    )


@settings(deadline=None, max_examples=8)
@given(pieces_and_bars(), st.integers(1, 4))
def test_a_continued_piece_keeps_its_beginning_and_has_the_bars_asked_for(drawn, num_bars) -> None:
    piece, _, from_bar = drawn
    if not (piece.bar < from_bar).any():
        return
    after = continue_piece(PLAIN, piece, from_bar, num_bars, FEW, say=quiet)
    assert after.num_bars == from_bar + num_bars
    before = notes_where(piece, lambda bar, _: bar < from_bar)
    assert notes_where(after, lambda bar, _: bar < from_bar) == before
    expected = [*piece.bar_metre[:from_bar], *[piece.bar_metre[from_bar - 1]] * num_bars]
    assert after.bar_metre.tolist() == expected
    assert set(after.bar_tempo[from_bar - 1 :].tolist()) == {int(piece.bar_tempo[from_bar - 1])}
    again = quantise(to_piece(after))
    assert notes_where(again, lambda *_: True) == notes_where(after, lambda *_: True)


@pytest.mark.parametrize(
    ("bars", "instruments", "has_hole", "named"),
    [
        ((2, 4), None, True, ()),
        ((0, 2), None, True, ()),
        ((4, 6), None, False, ()),
        ((1, 3), (0, 34), True, (0, 34)),
        ((3, 6), (34,), False, (34,)),
        ((0, 6), (0, 41), False, (0, 41)),
    ],
)
def test_what_is_drawn_stands_where_it_stood_in_training(
    monkeypatch: pytest.MonkeyPatch, bars, instruments, has_hole, named
) -> None:
    found = recorded(monkeypatch)
    piece = a_piece()
    rewrite_bars(FILLING, piece, *bars, FEW, instruments=instruments, say=quiet)
    [(part, done, ids)] = found
    assert first_violation(ids) is None
    assert (done.ids[: len(part.context)] == part.context).all()
    assert is_filled(ids) == (has_hole or bool(named))
    if not is_filled(ids):
        return
    hole = hole_of(ids)
    assert hole.instruments == named
    assert (hole.first, hole.last) == (bars if has_hole else (0, 0))
    # The form that training makes of the same window: FILLs, order, restated metres, the end.
    in_order = unfill(ids)

    # What is kept stands in it as it is: nothing is added to what others play.
    def is_kept(bar: int, instrument: int) -> bool:
        return not bars[0] <= bar < bars[1] or bool(named and instrument not in named)

    assert notes_where(decode(ids), is_kept) == notes_where(piece, is_kept)
    assert fill(in_order, hole).tolist() == ids.tolist()
    assert ids[-1] == EOS if has_hole else ids[-1] not in (EOS, FILL)


def test_bars_behind_the_hole_are_read_by_a_model_that_learned_to_fill_alone() -> None:
    piece = a_piece()
    other = a_piece()
    other.pitch[other.bar >= 4] += 3
    for model, is_read in ((FILLING, True), (PLAIN, False)):
        first, second = (
            notes_where(
                rewrite_bars(model, one, 1, 3, SamplingConfig(temperature=0), say=quiet),
                lambda bar, _: 1 <= bar < 3,
            )
            for one in (piece, other)
        )
        # Greedy notes of an untrained model hardly differ: its logits tell.
        if not is_read:
            assert first == second
    logits = []
    for one in (piece, other):
        with pytest.MonkeyPatch.context() as patch:
            found = recorded(patch)
            rewrite_bars(FILLING, one, 1, 3, FEW, say=quiet)
            logits.append(found[0][1].nats)
    assert logits[0] != logits[1]


def test_a_seed_repeats_its_notes_and_another_brings_others() -> None:
    piece = a_piece()
    first, again, other = (
        write_instruments(FILLING, piece, [41], FEW, seed=seed, say=quiet) for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


@pytest.mark.parametrize("instruments", [None, (34,)])
def test_a_piece_longer_than_a_row_is_read_in_part_and_kept_whole(instruments) -> None:
    piece = a_piece(24)
    model = a_model(max_seq_len=256)
    notices: list[Notice] = []
    after = rewrite_bars(model, piece, 5, 14, FEW, instruments=instruments, say=notices.append)
    check_edited(
        piece,
        after,
        lambda bar, instrument: not (5 <= bar < 14 and (not instruments or instrument == 34)),
    )
    assert [notice.code for notice in notices] == [NoticeCode.IN_PARTS, NoticeCode.NEAREST]
    assert "at a time" in notices[0].line and "--max_seq_len 256" in notices[1].line


def test_what_the_model_reads_fits_a_row_of_its_training(monkeypatch: pytest.MonkeyPatch) -> None:
    found = recorded(monkeypatch)
    piece = a_piece(40)
    rewrite_bars(a_model(max_seq_len=256), piece, 20, 22, FEW, say=quiet)
    [(part, _, ids)] = found
    assert 128 < len(part.context) < 256
    hole = hole_of(ids)
    num_bars = int((KIND_OF[ids] == Kind.BAR).sum())
    assert hole.first > 2 and num_bars - hole.last > 2, "both sides are read"


@pytest.mark.parametrize(("max_seq_len", "num_parts"), [(2048, 1), (512, 2), (256, 4)])
def test_a_hole_is_written_in_parts_only_where_a_row_cannot_hold_all(
    monkeypatch: pytest.MonkeyPatch, max_seq_len: int, num_parts: int
) -> None:
    found = recorded(monkeypatch)
    piece = a_piece(16)
    write_instruments(a_model(max_seq_len=max_seq_len), piece, [41], FEW, say=quiet)
    assert len(found) == num_parts


def test_every_instrument_at_once_keeps_the_rest() -> None:
    instruments = (0, 1, 34, 128)
    piece = a_piece(2, instruments)
    wished = [index for index in range(129) if index != 34]
    after = write_instruments(FILLING, piece, wished, FEW, say=quiet)
    check_edited(piece, after, lambda _, instrument: instrument == 34)
