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
