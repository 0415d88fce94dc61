"""Scores of real pieces: the loss that training would compute, whatever the batch."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from meloformer.errors import ConfigError
from meloformer.evaluation.likelihood import nats_per_token, scoring_windows, without_summaries
from meloformer.midi.quantised import QuantisedPiece
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES, num_summaries
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.hid import encode
from tests.layouts import layout_of, tiny_config


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(tiny_config(num_layers=2)).eval()


def by_hand(model: MuseFormer, windows: list[np.ndarray]) -> float:
    nats, count = 0.0, 0
    for window in windows:
        ids = torch.from_numpy(window.astype(np.int64))
        layout = layout_of(window)
        with torch.no_grad():
            logits = model(ids[None], layout, build_plan(layout, RULES["halves"]))[0]
        nats += F.cross_entropy(logits[:-1], ids[1:], reduction="sum").item()
        count += len(ids) - 1
    return nats / count


def test_a_score_is_the_mean_over_tokens_of_pieces_scored_alone(model, chorale_shards) -> None:
    index = ShardFolder.open(chorale_shards).split("valid")
    windows = scoring_windows(index, 384, range(2))
    expected = by_hand(model, windows)
    for batch_size in (1, 3, 8):
        assert nats_per_token(model, windows, batch_size=batch_size) == pytest.approx(expected)


def test_windows_hold_every_note_of_the_chosen_pieces_once(chorale_shards) -> None:
    from meloformer.tokens.hid import decode

    index = ShardFolder.open(chorale_shards).split("valid")
    windows = scoring_windows(index, 256, range(3))
    notes = sum(decode(window).num_notes for window in windows)
    assert notes == sum(index.sizes(piece).notes for piece in range(3))
    assert len(windows) > 3


def test_a_piece_of_more_bars_than_its_tokens_offer_slots_is_scored(model) -> None:
    num_bars = num_summaries(128) + 23
    nothing = np.zeros(0, dtype=np.int32)
    bars = QuantisedPiece(
        bar_metre=np.zeros(num_bars, dtype=np.int32),
        bar_tempo=np.zeros(num_bars, dtype=np.int32),
        bar=nothing,
        instrument=nothing,
        onset_steps=nothing,
        pitch=nothing,
        duration_steps=nothing,
        velocity=nothing,
    )
    one = {"bar": num_bars - 1, "pitch": 60, "duration_steps": 24, "velocity": 66}
    note = {
        name: np.array([one.get(name, 0)], dtype=np.int32)
        for name in ("bar", "instrument", "onset_steps", "pitch", "duration_steps", "velocity")
    }
    ids = encode(dataclasses.replace(bars, **note))
    assert num_summaries(len(ids)) < num_bars
    assert nats_per_token(model, [ids]) > 0


def test_a_blind_copy_changes_the_score_and_leaves_the_model_alone(model, chorale_shards) -> None:
    windows = scoring_windows(ShardFolder.open(chorale_shards).split("valid"), 512, range(1))
    before = nats_per_token(model, windows)
    assert nats_per_token(without_summaries(model), windows) != before
    assert nats_per_token(model, windows) == before


def test_nothing_to_score_is_refused(model) -> None:
    with pytest.raises(ConfigError, match="no token to predict"):
        nats_per_token(model, [])
