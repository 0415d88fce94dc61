from dataclasses import replace

import numpy as np
import pytest
import torch

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.augmentation import Augmentation
from meloformer.batches.batch import IGNORE_INDEX
from meloformer.batches.collate import Collator
from meloformer.batches.filling import Filling, draw_hole
from meloformer.batches.plan import PlanConfig, iterate_steps
from meloformer.batches.share import EMPTY_ROW, MicroBatchSpec, micro_batches
from meloformer.batches.windows import Window, bar_lines
from meloformer.errors import ConfigError
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.attributes import read_prefix
from meloformer.tokens.check import check
from meloformer.tokens.filling import hole_of, is_filled, unfill
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import BOS, CONTINUE, FILL
from tests.tokens.pieces import ids_of


@pytest.fixture(scope="module")
def index(chorale_shards):
    return ShardFolder.open(chorale_shards).split("train")


ALWAYS = Filling(rate=1.0)


def specs_of(index, config, rows=2):
    for step in iterate_steps(index, config):
        yield from micro_batches(step, 0, 1, rows)


def whole_windows(index, count=25):
    return [Window(piece, 0, index.sizes(piece).bars) for piece in range(count)]


@pytest.mark.parametrize("collate", ["bucket", "pack"])
@pytest.mark.parametrize("attributes", ["drawn", "all"])
def test_no_filled_window_exceeds_its_plan_and_none_loses_a_note(index, collate, attributes):
    plain = Collator(index=index, augmentation=Augmentation(max_transposition=5))
    if attributes == "all":  # the tightest: such windows have no room but that of their attributes
        plain = replace(plain, attributes=ALL_ATTRIBUTES)
    filling = replace(plain, filling=ALWAYS)
    config = PlanConfig(max_seq_len=320, collate=collate, global_batch=3)
    num_filled = num_windows = 0
    for spec in list(specs_of(index, config))[:12]:
        for window in (window for row in spec.rows for window in row):
            before, after = (one.window_ids(spec.epoch, window) for one in (plain, filling))
            check(after)
            assert len(after) <= bar_lines(index, window.piece).tokens(*window[1:])
            music = decode(before)
            for name, values in vars(decode(after)).items():
                assert np.array_equal(values, getattr(music, name)), name
            num_windows += 1
            num_filled += is_filled(after)
        assert filling(spec).num_notes == plain(spec).num_notes
    assert num_filled > 0.8 * num_windows > 10


def test_room_comes_from_the_attributes_that_the_bars_tell_anyway():
    ids = ids_of(
        "BOS 4/4 TEMPO:120 KEY:C_major LENGTH:<=2 DENSITY:<=1 #P0 BAR:N 4/4 TEMPO:120 "
        "#P0 T:0 P:60 L:24 V:66 BAR:N #P0 T:0 P:60 L:24 V:66 EOS"
    )
    full = ALWAYS.filled(ids, len(ids) + 9, np.random.default_rng(0))
    tight = ALWAYS.filled(ids, len(ids), np.random.default_rng(0))
    assert len(full) == len(ids) + 3 and len(tight) == len(ids)
    said, kept = read_prefix(full[1:]), read_prefix(tight[1:])
    assert (kept.metre, kept.tempo, kept.key) == (None, None, None)
    assert (kept.length, kept.density, kept.instruments) == (said.length, said.density, (1,))
    bare = np.concatenate([ids[:1], ids[7:]])
    assert np.array_equal(ALWAYS.filled(bare, len(bare), np.random.default_rng(0)), bare)


def test_a_rate_of_nought_changes_no_draw_and_no_other_rate_does(index):
    augmentation = Augmentation(max_transposition=5)
    plain = Collator(index=index, seed=2, augmentation=augmentation, open_summary_rate=0.5)
    some = replace(plain, filling=Filling(rate=0.5))
    assert plain.filling.rate == 0
    for window in whole_windows(index):
        assert plain.open_row(1, (window,)) == some.open_row(1, (window,))
        before, after = plain.window_ids(1, window), some.window_ids(1, window)
        if not is_filled(after):
            assert np.array_equal(before, after)
            continue
        # The same shift: the same music, whatever became of the prefix.
        assert np.array_equal(decode(after).pitch, decode(before).pitch)


def test_what_is_filled_depends_on_seed_epoch_piece_and_bar_alone(index):
    collator = Collator(index=index, seed=3, filling=Filling(rate=0.5))
    windows = whole_windows(index, 12)

    def made(of, epoch):
        return [of.window_ids(epoch, window).tolist() for window in windows]

    assert made(collator, 0) == made(replace(collator), 0)
    assert made(collator, 0) != made(collator, 1)
    assert made(collator, 0) != made(replace(collator, seed=4), 0)
    rows = ((windows[0], windows[1]), (windows[2],), EMPTY_ROW, (windows[3],))
    batch = collator(MicroBatchSpec(epoch=1, seq_len=2048, rows=rows))
    for row, of_row in enumerate(rows):
        alone = collator(MicroBatchSpec(epoch=1, seq_len=2048, rows=(of_row,)))
        assert torch.equal(batch.ids_BT[row], alone.ids_BT[0])
        assert torch.equal(batch.targets_BT[row], alone.targets_BT[0])
        assert torch.equal(batch.layout.bar_BT[row], alone.layout.bar_BT[0])


def test_the_share_of_filled_windows_is_the_rate(index):
    collator = Collator(index=index, filling=Filling(rate=0.3))
    drawn = [
        is_filled(collator.window_ids(epoch, window))
        for epoch in range(16)
        for window in whole_windows(index)
    ]
    assert 0.23 < np.mean(drawn) < 0.37


def test_rows_with_open_summaries_hold_no_filled_window(index):
    collator = Collator(index=index, open_summary_rate=0.5, filling=ALWAYS)
    rows = tuple((window,) for window in whole_windows(index, 16))
    batch = collator(MicroBatchSpec(epoch=0, seq_len=2048, rows=rows))
    filled_B = (batch.ids_BT[:, 0] == FILL).tolist()
    open_B = [seed is not None for seed in batch.open_seeds]
    assert 3 < sum(open_B) < 13
    assert not any(f and o for f, o in zip(filled_B, open_B, strict=True))
    assert sum(filled_B) >= 16 - sum(open_B) - 2


def test_a_filled_window_is_one_sequence_whose_every_token_is_a_target(index):
    collator = Collator(index=index, filling=ALWAYS)
    row = tuple(whole_windows(index, 2))
    batch = collator(MicroBatchSpec(epoch=0, seq_len=2048, rows=(row,)))
    ids, targets = batch.ids_BT[0].tolist(), batch.targets_BT[0].tolist()
    piece = batch.layout.piece_BT[0].tolist()
    for t, target in enumerate(targets):
        goes_on = piece[t] >= 0 and t + 1 < len(ids) and piece[t + 1] == piece[t]
        assert target == (ids[t + 1] if goes_on else IGNORE_INDEX)


def test_holes_of_every_sort_are_drawn_and_none_leaves_nothing_to_read(index):
    rng = np.random.default_rng(0)
    sorts, at_start, lengths, counts = [], 0, [], []
    for piece in range(25):
        ids = index.read(piece)
        for _ in range(12):
            hole = draw_hole(ids, rng)
            sorts.append((hole.has_bars, bool(hole.instruments)))
            num_bars = index.sizes(piece).bars
            assert hole.last < num_bars and len(hole.instruments) < 4
            if hole.has_bars:
                at_start += hole.first == 0
                lengths.append(hole.last - hole.first)
            if hole.instruments:
                counts.append(len(hole.instruments))
    shares = {sort: sorts.count(sort) / len(sorts) for sort in set(sorts)}
    assert set(shares) == {(True, False), (False, True), (True, True)}
    assert abs(shares[True, False] - 0.5) < 0.1
    assert at_start and min(lengths) == 1 and max(lengths) >= 8 and set(counts) == {1, 2, 3}


def test_a_bar_of_one_instrument_cannot_be_filled():
    ids = ids_of("BOS BAR:N 4/4 TEMPO:120 #P0 T:0 P:60 L:24 V:66 EOS")
    assert draw_hole(ids, np.random.default_rng(0)) is None
    assert np.array_equal(ALWAYS.filled(ids, 99, np.random.default_rng(0)), ids)


def test_two_bars_of_one_instrument_are_filled_by_bars_whatever_is_drawn():
    ids = ids_of("CONTINUE BAR:N 4/4 TEMPO:120 #P0 T:0 P:60 L:24 V:66 BAR:N #P0 T:0 P:60 L:24 V:66")
    for seed in range(8):
        filled = ALWAYS.filled(ids, 99, np.random.default_rng(seed))
        assert hole_of(filled).has_bars and not hole_of(filled).instruments
        assert np.array_equal(unfill(filled), ids)
        assert CONTINUE in filled and BOS not in filled


@pytest.mark.parametrize("rate", [-0.1, 1.5])
def test_a_rate_that_is_no_share_is_refused(rate):
    with pytest.raises(ConfigError, match=f"--fill_rate {rate}: allowed: 0 to 1"):
        Filling(rate=rate)
