"""What is drawn where a given piece is changed: who plays, what may not come, which is best."""

import numpy as np
import pytest
import torch

from meloformer.errors import GenerationError
from meloformer.generation.editing import continue_piece, rewrite_bars, write_instruments
from meloformer.generation.hole_writing import StoppedError
from meloformer.generation.notices import Notice, NoticeCode
from meloformer.generation.part_writing import Part
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.attention import build_plan
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import EOS, FILL, KIND_OF, Kind
from tests.generation.edited_pieces import (
    FEW,
    FILLING,
    FOUR_FOUR,
    PLAIN,
    TEMPO,
    Monotonous,
    a_model,
    a_piece,
    notes_where,
    quiet,
    recorded,
)
from tests.layouts import layout_of
from tests.tokens.pieces import piece_of


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
        # In time: in the first quarter of what is written.
        inside = (edited.bar >= first) & (edited.bar <= first + (last - first) // 4)
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
    notices: list[Notice] = []
    rewrite_bars(PLAIN, a_piece(), 1, 3, FEW, say=notices.append)
    [notice] = notices
    assert notice.code is NoticeCode.NO_FILL
    assert "does not read the bars behind them" in notice.line and str(notice) == notice.line
    notices.clear()
    rewrite_bars(PLAIN, a_piece(), 4, 6, FEW, say=notices.append)
    assert not notices


def test_a_notice_that_nobody_asked_for_is_logged_as_its_line(caplog) -> None:
    rewrite_bars(PLAIN, a_piece(), 1, 3, FEW)
    [line] = caplog.messages
    assert line.startswith("bars 1-2: the model was trained with --fill_rate 0")
