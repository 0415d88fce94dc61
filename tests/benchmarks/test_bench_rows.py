"""Rows of benches are real where shards are there, and say so where they are not."""

from pathlib import Path

import numpy as np
import pytest

from meloformer.benchmarks import bench_rows
from meloformer.benchmarks.bench_rows import find_rows, made_up_piece
from meloformer.model.masks import rule_of
from meloformer.tokens.labels import token_labels


def test_packed_rows_hold_the_tokens_of_the_shards(chorale_shards: Path) -> None:
    rows = find_rows(str(chorale_shards), "packed", 1024, num_rows=2)
    assert chorale_shards.name in rows.source
    batch = rows.batch(rule_of("halves"))
    assert batch.ids_BT.shape == (2, 1024) and batch.blocks is not None
    assert int((batch.layout.piece_BT >= 0).sum()) == rows.num_tokens > 0.9 * 2048


@pytest.mark.parametrize(("rate", "num_open"), [(0.3, 1), (0.5, 2), (1.0, 3)])
def test_the_first_rows_have_open_summaries_as_many_as_in_training_rounded_up(
    rate: float, num_open: int
) -> None:
    batch = find_rows(None, "one_piece", 256, num_rows=3).batch(rule_of("halves"), open_rate=rate)
    is_open = (batch.layout.open_BS >= 0).any(1).tolist()
    assert is_open == [row < num_open for row in range(3)]
    assert len(batch.open_seeds) == 3 and batch.blocks is not None
    assert len(batch.blocks.opened) == len(batch.blocks.update)


def test_rows_of_a_model_without_open_summaries_have_no_room_for_any() -> None:
    batch = find_rows(None, "one_piece", 256, num_rows=2).batch(rule_of("halves"), 64)
    assert batch.layout.open_BS is None and batch.open_seeds == ()
    assert batch.blocks is not None and batch.blocks.block_size == 64


def test_without_shards_the_rows_are_made_up_and_said_to_be_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = find_rows(None, "packed", 512, num_rows=1)
    assert rows.source.startswith("made up") and rows.num_tokens == 512


def test_a_made_up_piece_has_bars_for_all_its_instruments() -> None:
    labels = token_labels(made_up_piece(2048, np.random.default_rng(0)))
    assert len(labels.bar) == 2048
    in_bar = labels.bar == 3
    instruments = set(labels.instrument[in_bar].tolist()) - {0}
    assert len(instruments) == bench_rows._INSTRUMENTS
    assert labels.index[in_bar][0] == 0
