"""Bars and instruments written anew: what is kept stays note for note, whatever is written."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.errors import GenerationError
from meloformer.generation import hole_writing
from meloformer.generation.editing import continue_piece, rewrite_bars, write_instruments
from meloformer.generation.hole_writing import StoppedError
from meloformer.generation.part_writing import Part, WrittenPart, write_part
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantise import quantise
from meloformer.midi.quantised import QuantisedPiece
from meloformer.midi.render import to_piece
from meloformer.model.attention import build_plan
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.check import first_violation
from meloformer.tokens.filling import fill, hole_of, is_filled, unfill
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import EOS, FILL, KIND_OF, OFFSET, Kind
from tests.layouts import layout_of, tiny_config
from tests.tokens.pieces import piece_of, random_piece

FEW = SamplingConfig(top_k=40)
FOUR_FOUR, TEMPO = 3, 20


class Talkative(MuseFormer):
    """Random, but with several notes in most bars; the weights alone would end them at once."""

    def unembed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        logits_BTV = super().unembed(x_BTD)
        ends = np.flatnonzero(KIND_OF == Kind.BAR).tolist()
        less_V = torch.zeros_like(logits_BTV[0, 0])
        less_V[[*ends, EOS, FILL]] = 3.0
        return logits_BTV - less_V


class Monotonous(MuseFormer):
    """Knows four notes, whatever it has read, so that bars come again."""

    def unembed(self, x_BTD: torch.Tensor) -> torch.Tensor:
        known = {
            Kind.ONSET: (0, 24),
            Kind.PITCH: (60, 61),
            Kind.DURATION: (5,),
            Kind.VELOCITY: (3,),
        }
        logits_V = torch.full((len(KIND_OF),), -30.0)
        logits_V[torch.from_numpy(KIND_OF == Kind.BAR)] = 0.0
        logits_V[torch.from_numpy(KIND_OF == Kind.INSTRUMENT)] = 5.0
        for kind, indices in known.items():
            logits_V[[OFFSET[kind] + index for index in indices]] = 5.0
        return logits_V.expand(*x_BTD.shape[:2], -1)


def a_model(fill_rate: float = 0.3, **changes: Any) -> MuseFormer:
    torch.manual_seed(0)
    sizes = {"num_layers": 1, "width": 32, "ffn_width": 32, "max_seq_len": 1024}
    return Talkative(tiny_config(fill_rate=fill_rate, **{**sizes, **changes})).eval()


FILLING, PLAIN = a_model(), a_model(0.0)


def quiet(_: str) -> None:
    pass


def a_piece(num_bars: int = 6, instruments: tuple[int, ...] = (0, 1, 34)) -> QuantisedPiece:
    """A scale for every instrument, bar 3 empty."""
    notes = [
        (bar, instrument, 24 * beat, 40 + instrument % 8 + 2 * beat + bar % 12, 24, 66)
        for bar in range(num_bars)
        if bar != 3
        for instrument in instruments
        for beat in range(2)
    ]
    return piece_of([FOUR_FOUR] * num_bars, [TEMPO] * num_bars, notes)


def notes_where(
    piece: QuantisedPiece, is_kept: Callable[[int, int], bool]
) -> list[tuple[int, ...]]:
    """Notes whose bar and instrument are kept, one by one."""
    found = []
    for k in range(piece.num_notes):
        if is_kept(int(piece.bar[k]), int(piece.instrument[k])):
            columns = (
                piece.bar, piece.instrument, piece.onset_steps, piece.pitch,
                piece.duration_steps, piece.velocity,
            )  # fmt: skip
            found.append(tuple(int(column[k]) for column in columns))
    return found


def check_edited(
    before: QuantisedPiece, after: QuantisedPiece, is_kept: Callable[[int, int], bool]
) -> None:
    """Canonical, of the same bars, and what is kept is the same."""
    assert notes_where(after, is_kept) == notes_where(before, is_kept)
    assert after.bar_metre.tolist() == before.bar_metre.tolist()
    assert after.bar_tempo.tolist() == before.bar_tempo.tolist()
    # Written and read again, so that nothing overlaps or hides behind another note.
    assert sorted(notes_where(after, lambda *_: True)) == notes_where(after, lambda *_: True)
    assert after.bar.max() == after.num_bars - 1
    again = quantise(to_piece(after))
    assert notes_where(again, lambda *_: True) == notes_where(after, lambda *_: True)


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


def recorded(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Part, WrittenPart, np.ndarray]]:
    """Every part that is drawn from now on, and the sequence that is decoded of it."""
    found: list[Any] = []

    def write(model: MuseFormer, part: Part, *args: Any, **kwargs: Any) -> WrittenPart:
        done = write_part(model, part, *args, **kwargs)
        found.append([part, done])
        return done

    def read(ids: np.ndarray) -> QuantisedPiece:
        found[-1].append(ids)
        return decode(ids)

    monkeypatch.setattr(hole_writing, "write_part", write)
    monkeypatch.setattr(hole_writing, "decode", read)
    return found


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
    lines: list[str] = []
    after = rewrite_bars(model, piece, 5, 14, FEW, instruments=instruments, say=lines.append)
    check_edited(
        piece,
        after,
        lambda bar, instrument: not (5 <= bar < 14 and (not instruments or instrument == 34)),
    )
    assert len(lines) == 2, lines
    assert "at a time" in lines[0] and "--max_seq_len 256" in lines[1]


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


@pytest.mark.parametrize("max_seq_len", [1024, 256])  # in one part, and in several
@pytest.mark.parametrize("seed", range(4))
def test_who_was_asked_for_plays_and_who_was_not_need_not(seed: int, max_seq_len: int) -> None:
    model = a_model(max_seq_len=max_seq_len)
    model.__class__ = MuseFormer  # one that would rather end its bars
    piece, wished = a_piece(), (0, 20, 34, 99)
    for edited, first, last in (
        (write_instruments(model, piece, wished, FEW, seed=seed, say=quiet), 0, 6),
        (rewrite_bars(model, piece, 1, 3, FEW, instruments=(20, 34), seed=seed, say=quiet), 1, 3),
        (continue_piece(model, piece, 4, 2, FEW, instruments=wished, seed=seed, say=quiet), 4, 6),
    ):
        inside = (edited.bar >= first) & (edited.bar < last)
        assert {20, 34} <= set(edited.instrument[inside].tolist())
    nobody = rewrite_bars(model, piece, 1, 3, FEW, seed=seed, say=quiet)
    assert not {0, 1, 34} <= set(nobody.instrument[(nobody.bar > 0) & (nobody.bar < 3)].tolist())


def test_a_new_note_never_begins_while_a_kept_one_of_its_pitch_sounds() -> None:
    """All pitches but one of the only player sound on into the last bar, which needs a note."""
    notes = [(0, 1, 0, pitch, 96 * 2, 66) for pitch in range(128) if pitch != 60]
    piece = piece_of([FOUR_FOUR], [TEMPO], notes)
    after = continue_piece(FILLING, piece, 1, 1, FEW, say=quiet)
    assert after.num_bars == 2
    start = int(after.bar_start_steps[1])
    new = after.bar == 1
    held = start + after.onset_steps[new] < 96 * 2
    assert set(after.pitch[new][held].tolist()) <= {60}


def test_written_bars_are_none_of_those_before_them_where_that_is_wished() -> None:
    def bars_of(piece: QuantisedPiece) -> list[list[tuple[int, ...]]]:
        return [
            [note[1:4] for note in notes_where(piece, lambda bar, i: bar == wanted and i == 1)]  # noqa: B023
            for wanted in range(piece.num_bars)
        ]

    notes = [(bar, 34, 0, 40, 24, 66) for bar in range(8)]
    piece = piece_of([FOUR_FOUR] * 8, [TEMPO] * 8, notes)
    model = Monotonous(FILLING.config).eval()
    plain = bars_of(write_instruments(model, piece, [1], SamplingConfig(), say=quiet))
    varied = bars_of(
        write_instruments(model, piece, [1], SamplingConfig(no_repeat_bars=3), say=quiet)
    )
    assert any(bar and bar in plain[max(0, k - 3) : k] for k, bar in enumerate(plain))
    assert not any(bar and bar in varied[max(0, k - 3) : k] for k, bar in enumerate(varied))


def nats_plainly(model: MuseFormer, part: Part, ids: np.ndarray) -> float:
    """Of what was drawn in a hole of bars, by one parallel pass."""
    layout = layout_of(ids)
    with torch.no_grad():
        logits_TV = model(
            torch.from_numpy(ids.astype(np.int64))[None],
            layout,
            build_plan(layout, rule_of(model.config.rule)),
        )[0]
    log_p = torch.log_softmax(logits_TV.double(), dim=-1)
    is_bar = torch.from_numpy(KIND_OF == Kind.BAR)
    ends = is_bar.clone()
    ends[[EOS, FILL]] = True
    nats, drawn = 0.0, range(len(part.context), len(ids))
    for t in drawn:
        if KIND_OF[ids[t]] in (Kind.METRE, Kind.TEMPO):
            continue
        if KIND_OF[ids[t]] in (Kind.BAR, Kind.CONTROL):
            nats -= 0.0 if t == drawn[0] else float(log_p[t - 1][ends].logsumexp(0))
            if KIND_OF[ids[t]] == Kind.BAR:
                nats -= float(
                    log_p[t - 1][is_bar].log_softmax(0)[int(ids[t]) - is_bar.nonzero()[0]]
                )
        else:
            nats -= float(log_p[t - 1][int(ids[t])])
    return nats


def test_the_best_of_several_is_the_likeliest_by_a_parallel_pass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = recorded(monkeypatch)
    model = a_model().double()
    sampling = SamplingConfig(top_k=40, best_of=3)
    best = rewrite_bars(model, a_piece(), 1, 3, sampling, seed=5, say=quiet)
    per_note = []
    parts = [tuple(one) for one in found]
    for part, done, ids in parts:
        nats = nats_plainly(model, part, ids)
        assert done.nats == pytest.approx(nats, rel=1e-6)
        per_note.append(nats / done.num_notes)
    assert len(per_note) == 3
    written = [notes_where(decode(ids), lambda bar, _: 1 <= bar < 3) for _, _, ids in parts]
    chosen = written[int(np.argmin(per_note))]
    assert notes_where(best, lambda bar, _: 1 <= bar < 3) == chosen
    alone = rewrite_bars(model, a_piece(), 1, 3, FEW, seed=5, say=quiet)
    assert notes_where(alone, lambda bar, _: 1 <= bar < 3) == written[0]


def test_a_server_can_stop_the_writing_after_any_token() -> None:
    counts: list[int] = []

    def stop(num_tokens: int) -> bool:
        counts.append(num_tokens)
        return num_tokens == 7

    for edit in (
        lambda: rewrite_bars(FILLING, a_piece(), 1, 3, FEW, stop=stop, say=quiet),
        lambda: continue_piece(FILLING, a_piece(), 4, 3, FEW, stop=stop, say=quiet),
        lambda: write_instruments(FILLING, a_piece(), [7], FEW, stop=stop, say=quiet),
    ):
        counts.clear()
        with pytest.raises(StoppedError, match="stopped after 7 tokens"):
            edit()
        assert counts == list(range(1, 8))


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda p: rewrite_bars(FILLING, p, 4, 9, FEW), "the piece has bars 0-5"),
        (lambda p: rewrite_bars(FILLING, p, 3, 3, FEW), "the piece has bars 0-5"),
        (lambda p: rewrite_bars(FILLING, p, 0, 2, FEW, instruments=[]), "one or more of 0"),
        (lambda p: rewrite_bars(FILLING, p, 0, 2, FEW, instruments=[129]), "1 to 128"),
        (lambda p: rewrite_bars(PLAIN, p, 0, 2, FEW, instruments=[1]), "--fill_rate 0"),
        (lambda p: write_instruments(PLAIN, p, [1], FEW), "--fill_rate 0"),
        (lambda p: write_instruments(FILLING, p, [0, 1, 34, 40], FEW), "at least one that stays"),
        (lambda p: continue_piece(PLAIN, p, 0, 2, FEW), "allowed: 1 to 6"),
        (lambda p: continue_piece(PLAIN, p, 7, 2, FEW), "allowed: 1 to 6"),
        (lambda p: continue_piece(PLAIN, p, 6, 0, FEW), "allowed: 1 and above"),
    ],
)
def test_what_cannot_be_written_is_refused(edit, message) -> None:
    with pytest.raises(GenerationError, match=message):
        edit(a_piece())


def test_a_model_that_never_learned_to_fill_says_that_it_reads_backwards_alone() -> None:
    lines: list[str] = []
    rewrite_bars(PLAIN, a_piece(), 1, 3, FEW, say=lines.append)
    assert len(lines) == 1 and "does not read the bars behind them" in lines[0]
    lines.clear()
    rewrite_bars(PLAIN, a_piece(), 4, 6, FEW, say=lines.append)
    assert not lines
