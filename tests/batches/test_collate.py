from collections import Counter
from dataclasses import fields, is_dataclass, replace
from operator import itemgetter

import numpy as np
import pytest
import torch

from meloformer.batches.attributes import ALL_ATTRIBUTES, NO_ATTRIBUTES
from meloformer.batches.augmentation import Augmentation
from meloformer.batches.batch import IGNORE_INDEX
from meloformer.batches.block_plans import build_blocks
from meloformer.batches.collate import Collator, collate_rows
from meloformer.batches.plan import Cursor, PlanConfig, iterate_steps
from meloformer.batches.share import EMPTY_ROW, MicroBatchSpec, micro_batches
from meloformer.batches.windows import Window, bar_lines
from meloformer.errors import ConfigError
from meloformer.model.masks import BLOCK_SIZES, RULES, num_summaries
from meloformer.shards.reader import ShardFolder
from meloformer.tokens.attributes import Attributes, read_prefix
from meloformer.tokens.check import check
from meloformer.tokens.hid import decode
from meloformer.tokens.vocabulary import BOS, CONTINUE, EOS, KIND_OF, PAD, Kind
from meloformer.tokens.windows import window_length


@pytest.fixture(scope="module")
def index(chorale_shards):
    return ShardFolder.open(chorale_shards).split("train")


def specs_of(index, config, epoch=0, rows=2):
    for step in iterate_steps(index, config, Cursor(epoch=epoch)):
        yield from micro_batches(step, 0, 1, rows)


def configs():
    for max_seq_len in (320, 1024):
        for collate in ("bucket", "pack"):
            yield PlanConfig(max_seq_len=max_seq_len, collate=collate, global_batch=3)


@pytest.mark.parametrize("config", list(configs()), ids=lambda c: f"{c.collate}-{c.max_seq_len}")
def test_an_epoch_holds_every_note_once_and_no_window_exceeds_its_plan(index, config):
    collator = Collator(index=index, attributes=ALL_ATTRIBUTES)
    notes = targets = tokens = windows = 0
    for spec in specs_of(index, config):
        batch = collator(spec)
        notes += batch.num_notes
        targets += batch.num_targets
        tokens += int((batch.ids_BT != PAD).sum())
        windows += sum(map(len, spec.rows))
        assert batch.ids_BT.shape == (2, spec.seq_len)
        for window in (window for row in spec.rows for window in row):
            bound = bar_lines(index, window.piece).tokens(*window[1:])
            found = len(collator.window_ids(spec.epoch, window))
            assert found == bound if window.first_bar == 0 else bound - 2 <= found <= bound
    assert notes == sum(index.sizes(piece).notes for piece in range(index.num_pieces))
    assert targets == tokens - windows


def test_planned_tokens_are_those_of_the_tokens_stage(index):
    for piece in range(index.num_pieces):
        lines, starts = bar_lines(index, piece), index.bar_starts(piece)
        num_bars = index.sizes(piece).bars
        assert lines.tokens(0, num_bars) == index.sizes(piece).tokens
        for first in range(num_bars):
            for last in {first + 1, (first + num_bars) // 2 + 1, num_bars} - {first}:
                expected = window_length(index.sizes(piece).prefix, starts, first, last)
                assert lines.tokens(first, last) == expected


def test_windows_decode_alone_and_say_whether_they_start_or_end_their_piece(index):
    collator = Collator(index=index)
    config = PlanConfig(max_seq_len=320, collate="pack", global_batch=3)
    for spec in specs_of(index, config):
        for window in (window for row in spec.rows for window in row):
            ids = collator.window_ids(spec.epoch, window)
            check(ids)
            assert decode(ids).num_bars == window.last_bar - window.first_bar
            assert ids[0] == (BOS if window.first_bar == 0 else CONTINUE)
            assert (ids[-1] == EOS) == (window.last_bar == index.sizes(window.piece).bars)


def test_targets_are_the_next_token_of_the_same_window_and_nothing_else(index):
    collator = Collator(index=index)
    for spec in specs_of(index, PlanConfig(max_seq_len=1024, collate="pack", global_batch=3)):
        batch = collator(spec)
        for row in range(len(spec.rows)):
            ids, targets = batch.ids_BT[row].tolist(), batch.targets_BT[row].tolist()
            piece = batch.layout.piece_BT[row].tolist()
            for t, target in enumerate(targets):
                goes_on = t + 1 < len(ids) and piece[t] >= 0 and piece[t + 1] == piece[t]
                assert target == (ids[t + 1] if goes_on else IGNORE_INDEX)
            starts = [t for t, token in enumerate(ids) if token in (BOS, CONTINUE)]
            assert len(starts) == len(spec.rows[row])
            assert BOS not in targets and CONTINUE not in targets


def test_bars_count_from_zero_in_every_window_and_each_has_one_summary(index):
    collator = Collator(index=index)
    for spec in specs_of(index, PlanConfig(max_seq_len=1024, collate="pack", global_batch=3)):
        batch = collator(spec)
        layout = batch.layout
        assert layout.piece_BS.shape[1] == num_summaries(spec.seq_len)
        for row, windows in enumerate(spec.rows):
            piece, bar = layout.piece_BT[row].numpy(), layout.bar_BT[row].numpy()
            ids, index_T = batch.ids_BT[row].numpy(), layout.index_BT[row].numpy()
            summaries = []
            for number, (_, first, last) in enumerate(windows):
                own = piece == number
                assert sorted(set(bar[own])) == list(range(-1, last - first))
                is_bar_token = KIND_OF[ids[own]] == Kind.BAR
                assert bar[own][is_bar_token].tolist() == list(range(last - first))
                assert (index_T[own][is_bar_token] == 0).all()
                assert (layout.instrument_BT[row].numpy()[own][bar[own] < 0] == -1).all()
                summaries += [(number, b) for b in range(last - first)]
            found = zip(layout.piece_BS[row].tolist(), layout.bar_BS[row].tolist(), strict=True)
            padding = [(-1, 0)] * (num_summaries(spec.seq_len) - len(summaries))
            assert list(found) == summaries + padding


def test_padding_belongs_to_no_piece_and_is_no_target(index):
    batch = Collator(index=index)(MicroBatchSpec(epoch=0, seq_len=2048, rows=((Window(0, 0, 3),),)))
    length = int((batch.ids_BT[0] != PAD).sum())
    layout = batch.layout
    expected = {"piece_BT": -1, "bar_BT": -1, "instrument_BT": -1, "onset_BT": 0, "index_BT": 0}
    for name, value in expected.items():
        assert (getattr(layout, name)[0, length:] == value).all()
    assert (layout.piece_BT[0, :length] == 0).all()
    assert (batch.targets_BT[0, length - 1 :] == IGNORE_INDEX).all()
    assert batch.num_targets == length - 1


def test_every_row_has_the_labels_it_has_alone(index):
    collator = Collator(index=index)
    rows = ((Window(0, 0, 4), Window(1, 2, 5)), (Window(2, 1, 3),), EMPTY_ROW, (Window(3, 0, 6),))
    batch = collator(MicroBatchSpec(epoch=1, seq_len=1024, rows=rows))
    for row, windows in enumerate(rows):
        alone = collator(MicroBatchSpec(epoch=1, seq_len=1024, rows=(windows,)))
        assert torch.equal(batch.ids_BT[row], alone.ids_BT[0])
        assert torch.equal(batch.targets_BT[row], alone.targets_BT[0])
        for name, label in vars(batch.layout.map(itemgetter(row))).items():
            assert label is None or torch.equal(label, getattr(alone.layout, name)[0]), name
    assert batch.num_rows == 3


def test_a_packed_window_has_the_labels_it_has_alone(index):
    collator = Collator(index=index)
    neighbour, window = Window(0, 0, 4), Window(1, 2, 5)
    packed = collator(MicroBatchSpec(epoch=1, seq_len=1024, rows=((neighbour, window),)))
    alone = collator(MicroBatchSpec(epoch=1, seq_len=1024, rows=((window,),)))
    there, here = packed.layout.piece_BT[0] == 1, alone.layout.piece_BT[0] == 0
    assert torch.equal(packed.ids_BT[0, there], alone.ids_BT[0, here])
    assert torch.equal(packed.targets_BT[0, there], alone.targets_BT[0, here])
    for name in ("bar_BT", "instrument_BT", "onset_BT", "index_BT"):
        together = getattr(packed.layout, name)[0, there]
        assert torch.equal(together, getattr(alone.layout, name)[0, here]), name


def test_a_row_without_windows_weighs_nothing(index):
    batch = Collator(index=index)(MicroBatchSpec(epoch=0, seq_len=512, rows=(EMPTY_ROW,) * 2))
    assert (batch.num_rows, batch.num_targets, batch.num_notes) == (0, 0, 0)
    assert (batch.ids_BT == PAD).all() and (batch.targets_BT == IGNORE_INDEX).all()
    assert (batch.layout.piece_BT == -1).all() and (batch.layout.piece_BS == -1).all()


def test_what_a_window_keeps_depends_on_seed_epoch_piece_and_bar_alone(index):
    collator = Collator(index=index, seed=3)
    windows = [Window(piece, 0, index.sizes(piece).bars) for piece in range(20)]

    def lengths(of, epoch):
        return [len(of.window_ids(epoch, window)) for window in windows]

    again = Collator(index=index, seed=3)
    assert lengths(collator, 0) == lengths(again, 0)
    assert lengths(collator, 0) != lengths(collator, 1)
    assert lengths(collator, 0) != lengths(replace(collator, seed=4), 0)
    row = collator(MicroBatchSpec(epoch=0, seq_len=8192, rows=(tuple(windows[:5]),)))
    assert list(Counter(row.layout.piece_BT[0].tolist()).values())[:5] == lengths(collator, 0)[:5]


def test_without_attributes_a_prefix_is_its_first_token(index):
    batch = Collator(index=index, attributes=NO_ATTRIBUTES)(
        MicroBatchSpec(epoch=0, seq_len=1024, rows=((Window(0, 0, 2), Window(1, 3, 5)),))
    )
    in_prefix = (batch.layout.bar_BT[0] < 0) & (batch.layout.piece_BT[0] >= 0)
    assert batch.ids_BT[0, in_prefix].tolist() == [BOS, CONTINUE]


def test_transposed_windows_keep_their_length_and_their_rhythm(index):
    plain = Collator(index=index, attributes=ALL_ATTRIBUTES)
    shifting = replace(plain, augmentation=Augmentation(max_transposition=6))
    shifts = set()
    for piece in range(20):
        window = Window(piece, 0, index.sizes(piece).bars)
        before, after = plain.window_ids(0, window), shifting.window_ids(0, window)
        assert np.array_equal(after, shifting.window_ids(0, window))
        check(after)
        is_pitch = KIND_OF[before] == Kind.PITCH
        difference = after[is_pitch].astype(int) - before[is_pitch].astype(int)
        shifts.add(int(difference[0]))
        assert (difference == difference[0]).all()
        moved = (Kind.PITCH, Kind.BAR, Kind.KEY)
        stays = ~np.isin(KIND_OF[before], moved)
        assert np.array_equal(after[stays], before[stays])
    assert len(shifts) > 3 and max(map(abs, shifts)) <= 6
    with pytest.raises(ConfigError, match=r"allowed 0\.\.11"):
        Augmentation(max_transposition=12)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_block_lists_are_those_of_the_batch_layout(index, rule, size):
    spec = next(specs_of(index, PlanConfig(max_seq_len=1024, global_batch=2)))
    batch = Collator(index=index, blocks_rule=RULES[rule], block_size=size)(spec)
    layout = batch.layout.map(torch.Tensor.numpy)
    expected = build_blocks(layout, RULES[rule], size)
    assert len(batch.blocks.update) == len(RULES[rule]) and batch.blocks.block_size == size
    found, wanted = leaves(batch.blocks), leaves(expected)
    assert len(found) == len(wanted) > 8 * (1 + len(RULES[rule]))
    for tensor, array in zip(found, wanted, strict=True):
        assert np.array_equal(tensor.numpy(), array)


def leaves(value):
    """Arrays or tensors of nested dataclasses and tuples, in the order of their fields."""
    if isinstance(value, tuple):
        return [leaf for item in value for leaf in leaves(item)]
    if is_dataclass(value):
        return [leaf for f in fields(value) for leaf in leaves(getattr(value, f.name))]
    return [value] if isinstance(value, np.ndarray | torch.Tensor) else []


def test_moving_a_batch_keeps_every_number(index):
    spec = next(specs_of(index, PlanConfig(max_seq_len=512, global_batch=2)))
    batch = Collator(index=index, blocks_rule=RULES["halves"])(spec)
    moved = batch.to("cpu")
    assert torch.equal(moved.ids_BT, batch.ids_BT)
    assert torch.equal(moved.layout.piece_BS, batch.layout.piece_BS)
    assert torch.equal(moved.blocks.update[1].kv_num_BQ, batch.blocks.update[1].kv_num_BQ)
    assert moved.num_targets == batch.num_targets
    on_meta = batch.to("meta")
    assert on_meta.layout.bar_BT.is_meta and on_meta.blocks.summarize.full_num_BQ.is_meta


def test_labels_are_int32_and_ids_int64(index):
    batch = Collator(index=index)(next(specs_of(index, PlanConfig(max_seq_len=512))))
    assert batch.ids_BT.dtype == batch.targets_BT.dtype == torch.int64
    dtypes = vars(batch.layout.map(lambda label: label.dtype))
    assert dtypes.pop("open_BS") is None and set(dtypes.values()) == {torch.int32}


def test_more_than_a_row_takes_is_never_cut_silently(index):
    with pytest.raises(AssertionError, match="overfilled"):
        collate_rows([[index.read(0)]], 32)


def test_open_summaries_stand_in_the_rows_that_the_seed_draws_whoever_collates_them(index):
    rows = (*(((Window(piece, 0, 4),)) for piece in range(4)), EMPTY_ROW)
    spec = MicroBatchSpec(epoch=2, seq_len=1024, rows=rows)
    drawn = []
    for rate in (0.0, 0.5, 1.0):
        collator = Collator(index=index, seed=3, open_summary_rate=rate)
        batch = collator(spec)
        if not rate:
            assert batch.layout.open_BS is None and batch.open_seeds == ()
            continue
        open_B = (batch.layout.open_BS >= 0).any(1)
        assert not open_B[4] and len(batch.open_seeds) == 5
        for row in range(4):
            own = batch.layout.piece_BS[row] if open_B[row] else torch.full((128,), -1)
            assert torch.equal(batch.layout.open_BS[row], own.int())
            alone = collator(MicroBatchSpec(epoch=2, seq_len=1024, rows=(rows[row],)))
            assert alone.open_seeds[0] == batch.open_seeds[row]
            assert torch.equal(alone.layout.open_BS[0], batch.layout.open_BS[row])
        drawn.append(open_B[:4])
    assert drawn[1].all() and len(set(batch.open_seeds)) == 5


def test_the_share_of_rows_with_open_summaries_is_the_rate(index):
    collator = Collator(index=index, open_summary_rate=0.3)
    drawn = [
        collator.open_row(epoch, (Window(piece, 0, 4),))
        for epoch in range(40)
        for piece in range(25)
    ]
    assert 0.25 < np.mean([seed is not None for seed, _ in drawn]) < 0.35
    assert not any(is_untold for seed, is_untold in drawn if seed is None)
    assert 0.55 < np.mean([is_untold for seed, is_untold in drawn if seed is not None]) < 0.78


def test_in_most_rows_with_open_summaries_the_prefix_says_the_length_at_most(index):
    """Elsewhere it says what it would have said."""
    told, opened = (Collator(index=index, open_summary_rate=rate) for rate in (0.0, 1.0))
    lengths = []
    for epoch, piece in np.ndindex(8, 12):
        row = (Window(piece, 0, 4),)
        spec = MicroBatchSpec(epoch=epoch, seq_len=1024, rows=(row,))
        (with_all,), (with_open,) = (one(spec).ids_BT.numpy() for one in (told, opened))
        _, is_untold = opened.open_row(epoch, row)
        if is_untold:
            said = read_prefix(with_open.astype(np.uint16))
            lengths.append(said.length is not None)
            assert said == Attributes(length=said.length)
            music = [ids[ids != PAD][-20:].tolist() for ids in (with_all, with_open)]
            assert music[0] == music[1]
        else:
            assert np.array_equal(with_all, with_open)
    assert len(lengths) > 40 and 0.25 < np.mean(lengths) < 0.75
