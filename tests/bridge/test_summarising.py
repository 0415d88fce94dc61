"""Summaries of windows are the windows' own: whatever lies beside them, and whatever follows."""

import numpy as np
import pytest
import torch
from torch import Tensor

from meloformer.bridge.joined_windows import join_windows
from meloformer.bridge.summarising import (
    bare_window,
    count_bars,
    row_batches,
    summaries_of_piece,
    summaries_of_windows,
)
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES, num_summaries
from meloformer.model.museformer import MuseFormer
from meloformer.shards.reader import ShardFolder, SplitIndex
from meloformer.tokens.attributes import prefix_length
from meloformer.tokens.windows import bar_starts, summary_windows
from tests.bridge.bases import random_base
from tests.layouts import layout_of


@pytest.fixture(scope="module")
def model() -> MuseFormer:
    return random_base()


@pytest.fixture(scope="module")
def split(chorale_shards) -> SplitIndex:
    return ShardFolder.open(chorale_shards).split("train")


@pytest.fixture(scope="module")
def windows(split: SplitIndex) -> list[np.ndarray]:
    found = []
    for piece, last in enumerate((9, 2, 5, 1, 7, 3)):
        ids = split.read(piece)
        found.append(bare_window(ids, bar_starts(ids), 0, last))
    return found


def by_hand(model: MuseFormer, window: np.ndarray) -> Tensor:
    layout = layout_of(window)
    ids = torch.from_numpy(window.astype(np.int64))[None]
    with torch.no_grad():
        s_BSD = model.summaries(ids, layout, build_plan(layout, RULES["halves"]), 3)
    return s_BSD[0, : count_bars(window)]


@pytest.mark.parametrize(
    ("rows", "batch_size"), [("alone", 1), ("alone", 8), ("packed", 1), ("packed", 3)]
)
def test_a_window_has_the_summaries_that_it_has_alone(model, windows, rows, batch_size) -> None:
    together = summaries_of_windows(model, windows, batch_size=batch_size, rows=rows)
    for found, window in zip(together, windows, strict=True):
        torch.testing.assert_close(found, by_hand(model, window), atol=1e-5, rtol=0)
    of_all = torch.cat(together)
    assert of_all.std(0).min() > 1e-2, "bars that are all alike would agree by accident"


def test_packed_rows_share_one_shape_and_hold_every_window_once(model, windows) -> None:
    batches = list(row_batches(model, windows, 2, rows="packed"))
    assert len({batch.batch.ids_BT.shape for batch in batches}) == 1
    assert sorted(slot[0] for batch in batches for slot in batch.slots) == list(range(len(windows)))
    assert max(batch.batch.num_rows for batch in batches) < len(windows)


@pytest.mark.slow
def test_the_sparse_kernel_gives_the_same_summaries(model, windows) -> None:
    dense = summaries_of_windows(model, windows[:3])
    sparse = summaries_of_windows(model, windows[:3], batch_size=1, backend="flex")
    for found, expected in zip(sparse, dense, strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_what_follows_does_not_change_the_summaries_of_first_bars(model, split) -> None:
    ids = split.read(0)
    starts = bar_starts(ids)
    short, long = summaries_of_windows(
        model, [bare_window(ids, starts, 0, last) for last in (4, 8)]
    )
    torch.testing.assert_close(short, long[:4], atol=1e-5, rtol=0)


def test_a_bare_window_says_nothing_before_its_first_bar(split) -> None:
    ids = split.read(1)
    starts = bar_starts(ids)
    assert prefix_length(ids) > 1
    for first in (0, 3):
        window = bare_window(ids, starts, first, 5)
        assert prefix_length(window) == 1 and count_bars(window) == 5 - first


def test_a_window_of_more_bars_than_its_tokens_offer_slots_has_them_all(model, split) -> None:
    ids = split.read(0)
    starts = bar_starts(ids)
    # The same bar again and again: its own header first, the prefix left out.
    bar = bare_window(ids, starts, 0, 1)[1:][:4]
    window = np.concatenate([ids[:1], *[bar] * (num_summaries(128) + 5)])
    (found,) = summaries_of_windows(model, [window])
    assert len(found) == count_bars(window) == num_summaries(128) + 5


def test_a_long_piece_is_summarised_in_windows_and_joined(model, split) -> None:
    ids = split.read(2)
    starts = bar_starts(ids)
    spans = summary_windows(ids, starts, max_bars=4, max_tokens=400, overlap=2)
    assert len(spans) > 2
    parts = [by_hand(model, bare_window(ids, starts, *span)) for span in spans]
    expected = join_windows([(*span, part) for span, part in zip(spans, parts, strict=True)])
    found = summaries_of_piece(model, ids, max_bars=4, max_tokens=400, overlap=2)
    assert len(found) == len(starts) - 1
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
