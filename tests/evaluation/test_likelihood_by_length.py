"""Likelihood by context length: the same notes at each, scored as one window after the other."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meloformer.evaluation.judged_pieces import draw_held_out
from meloformer.evaluation.likelihood import nats_per_token, scoring_windows
from meloformer.evaluation.likelihood_by_length import LENGTHS, lengths_for, likelihood_by_length
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.vocabulary import KIND_OF, Kind
from meloformer.tokens.windows import bar_starts
from tests.layouts import layout_of, tiny_config


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(tiny_config(num_layers=1, max_seq_len=512)).eval()


def test_lengths_end_where_the_model_or_the_pieces_end() -> None:
    assert lengths_for(16384, 10**6) == list(LENGTHS)
    assert lengths_for(16384, 1024) == [1024]
    assert lengths_for(16384, 1025) == [1024, 2048]
    assert lengths_for(1024, 10**6) == [1024]
    assert lengths_for(768, 100) == [768]


def test_every_length_scores_every_note_once_and_as_by_hand(model, chorale_shards) -> None:
    drawn = draw_held_out(ShardFolder.open(chorale_shards), 2, seed=0)
    found = likelihood_by_length(model, drawn, seed=0, lengths=(384,))
    assert [one.length for one in found] == [384, 512], "the model's own length ends them"
    notes = [one.index.sizes(one.piece).notes for one in drawn]
    for one in found:
        assert one.nats.num_notes == sum(notes)
        assert one.per_note.n == len(drawn) and one.num_windows >= len(drawn)
        windows = [
            (number, window)
            for number, piece in enumerate(drawn)
            for window in scoring_windows(piece.index, one.length, [piece.piece])
        ]
        assert one.num_windows == len(windows)
        assert one.nats.per_token == pytest.approx(nats_per_token(model, [w for _, w in windows]))
        in_bars = np.zeros(len(drawn))
        pitches = []
        for number, window in windows:
            each = by_hand(model, window)
            in_bars[number] += each[bar_starts(window)[0] - 1 :].sum()
            pitches += each[KIND_OF[window[1:]] == Kind.PITCH].tolist()
        assert one.per_note.mean == pytest.approx((in_bars / notes).mean(), rel=1e-4)
        assert one.nats.per_note == pytest.approx(in_bars.sum() / sum(notes), rel=1e-4)
        assert one.nats.per_kind["PITCH"] == pytest.approx(np.mean(pitches), rel=1e-4)


def by_hand(model: MuseFormer, window: np.ndarray) -> np.ndarray:
    """(T - 1,) nats of each token but the first, scored alone."""
    ids = torch.from_numpy(window.astype(np.int64))
    layout = layout_of(window)
    with torch.no_grad():
        logits = model(ids[None], layout, build_plan(layout, RULES["halves"]))[0]
    return F.cross_entropy(logits[:-1], ids[1:], reduction="none").numpy()


def test_more_context_is_read_and_pieces_that_fit_are_scored_alike(model, chorale_shards) -> None:
    (one,) = draw_held_out(ShardFolder.open(chorale_shards), 1, seed=0)
    tokens = one.index.sizes(one.piece).tokens
    lengths = (tokens - 100, tokens, tokens + 100)
    whole = MuseFormer(replace(model.config, max_seq_len=4 * tokens)).eval()
    cut, uncut = likelihood_by_length(whole, [one], seed=0, lengths=lengths)
    assert (cut.num_windows, uncut.num_windows) == (2, 1), "a longer one would say the same"
    assert cut.nats.per_note != uncut.nats.per_note
