import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.batches.facts import epoch_facts
from meloformer.batches.plan import Cursor, PlanConfig, iterate_steps, plan_fingerprint
from meloformer.batches.windows import bar_lines, check_bars_fit
from meloformer.errors import BatchError, ConfigError
from meloformer.model.masks import num_summaries


def windows_of(steps):
    return [window for step in steps for row in step.rows for window in row.windows]


def rows_of(steps):
    return [step.rows for step in steps]


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_every_bar_of_every_piece_is_in_exactly_one_window_of_an_epoch(
    data, corpora, plan_settings
):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    epoch = data.draw(st.integers(0, 3))
    windows = windows_of(iterate_steps(index, config, Cursor(epoch=epoch)))
    bars = Counter((piece, bar) for piece, first, last in windows for bar in range(first, last))
    expected = {(p, b) for p, n in enumerate(index.bars.tolist()) for b in range(n)}
    assert set(bars) == expected
    assert set(bars.values()) == {1}


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_rows_stay_within_their_tokens_and_bars(data, corpora, plan_settings, size_of):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    for step in iterate_steps(index, config):
        for row in step.rows:
            sizes = [size_of(index, window) for window in row.windows]
            assert row.tokens == sum(size.tokens for size in sizes)
            assert row.bars == sum(size.bars for size in sizes)
            assert 0 < row.tokens <= row.length <= config.max_seq_len
            assert row.bars <= num_summaries(row.length)
            assert row.length in config.row_lengths


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_only_the_last_step_of_an_epoch_may_be_short(data, corpora, plan_settings):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    sizes = [len(step.rows) for step in iterate_steps(index, config)]
    assert set(sizes[:-1]) <= {config.global_batch}
    assert 0 < sizes[-1] <= config.global_batch


@given(data=st.data())
@settings(max_examples=30, deadline=None)
def test_from_every_cursor_exactly_the_remaining_steps_follow(data, corpora, plan_settings):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    steps = list(iterate_steps(index, config))
    for done, step in enumerate(steps[:-1], start=1):
        cursor = Cursor.from_json(json.loads(json.dumps(step.cursor_after.to_json())))
        assert cursor == step.cursor_after
        assert cursor.step_in_epoch == done
        assert list(iterate_steps(index, config, cursor)) == steps[done:]
    assert steps[-1].cursor_after == Cursor(epoch=1)


def test_a_cursor_carries_fewer_than_a_step_of_rows_with_their_sizes(simulated, size_of):
    index = simulated(3, 400, 40, 20.0, 12.0)
    for collate in ("bucket", "pack"):
        config = PlanConfig(max_seq_len=256, collate=collate, global_batch=4, group_shards=2)
        for step in iterate_steps(index, config):
            carried = step.cursor_after.carried
            assert all(sized == size_of(index, sized.window) for sized in carried)
            tokens = sum(sized.tokens for sized in carried)
            assert tokens <= config.global_batch * config.max_seq_len


def test_epochs_and_seeds_order_the_same_corpus_differently(simulated):
    index = simulated(0, 80, 4, 6.0, 4.0)
    for collate in ("bucket", "pack"):
        config = PlanConfig(max_seq_len=64, collate=collate, global_batch=4, seed=1)
        plans = [
            rows_of(iterate_steps(index, replace(config, seed=seed), Cursor(epoch=epoch)))
            for seed, epoch in [(1, 0), (1, 1), (2, 0), (2, 1)]
        ]
        assert plans[0] == rows_of(iterate_steps(index, config))
        assert all(a != b for i, a in enumerate(plans) for b in plans[:i])


def test_whole_pieces_stay_whole_in_bucket_mode(simulated):
    index = simulated(5, 300, 3, 6.0, 12.0)
    config = PlanConfig(max_seq_len=128, global_batch=8)
    cut = {w.piece for w in windows_of(iterate_steps(index, config)) if w.first_bar > 0}
    assert cut == set(np.flatnonzero(index.tokens > 128).tolist())


def test_a_piece_with_more_bars_than_a_row_is_cut_and_complete(simulated):
    index = simulated(1, 3, 1, 400.0, 1.2)
    config = PlanConfig(max_seq_len=2048, global_batch=2)
    assert index.bars.max() > config.max_bars
    windows = windows_of(iterate_steps(index, config))
    assert max(last - first for _, first, last in windows) <= config.max_bars
    assert sum(last - first for _, first, last in windows) == index.bars.sum()


def test_many_bars_of_few_tokens_lengthen_the_row(simulated):
    index = simulated(1, 1, 1, 300.0, 1.2)
    bars = int(index.bars[0])
    config = PlanConfig(max_seq_len=8192, global_batch=1)
    assert num_summaries(512) < bars <= config.max_bars
    (step,) = iterate_steps(index, config)
    (row,) = step.rows
    assert num_summaries(row.length - 512) < bars <= num_summaries(row.length)


def test_most_steps_have_one_shape_where_lengths_differ(simulated):
    index = simulated(2, 4000, 8, 60.0, 12.0)
    config = PlanConfig(max_seq_len=2048, global_batch=8, bucket_multiple=256)
    shapes = [{row.length for row in step.rows} for step in iterate_steps(index, config)]
    assert sum(len(shape) == 1 for shape in shapes) > 0.8 * len(shapes)


@pytest.mark.parametrize(("collate", "allowed"), [("bucket", 0.05), ("pack", 0.02)])
def test_padding_of_many_pieces_is_small(simulated, collate, allowed):
    index = simulated(4, 3000, 20, 30.0, 60.0)
    config = PlanConfig(max_seq_len=8192, collate=collate, global_batch=12)
    assert epoch_facts(index, config).padding < allowed


@pytest.mark.parametrize("num_pieces", [30, 300])
def test_padding_of_packed_rows_is_small_where_bars_are_long_and_rows_few(simulated, num_pieces):
    index = simulated(4, num_pieces, 2, 60.0, 100.0)
    assert index.longest_bar(0) > 300
    config = PlanConfig(max_seq_len=2048, collate="pack", global_batch=2)
    assert epoch_facts(index, config).padding < 0.02


def test_the_open_row_of_an_epoch_is_in_its_last_step(simulated):
    index = simulated(6, 40, 1, 20.0, 12.0)
    for seed in range(5):
        config = PlanConfig(max_seq_len=1024, collate="pack", global_batch=1, seed=seed)
        *full, last = [step.rows[0].tokens for step in iterate_steps(index, config)]
        assert min(full) > 0.98 * 1024
        assert last < 0.98 * 1024


def test_epoch_facts_count_what_the_plan_holds(simulated):
    index = simulated(7, 50, 2, 6.0, 4.0)
    config = PlanConfig(max_seq_len=100, global_batch=3)
    steps = list(iterate_steps(index, config))
    facts = epoch_facts(index, config)
    assert facts.num_steps == len(steps)
    assert facts.num_windows == len(windows_of(steps))
    assert sum(facts.rows_per_length.values()) == facts.num_rows


@pytest.mark.parametrize("collate", ["bucket", "pack"])
def test_facts_of_a_large_epoch_are_extrapolated_from_whole_groups_of_shards(simulated, collate):
    index = simulated(8, 3000, 60, 30.0, 12.0)
    config = PlanConfig(max_seq_len=1024, collate=collate, global_batch=4, group_shards=4)
    exact, some = epoch_facts(index, config), epoch_facts(index, config, max_pieces=600)
    assert exact.counted == 1.0
    assert 0.19 < some.counted < 0.4
    assert some == epoch_facts(index, config, max_pieces=600)
    for name in ("num_steps", "num_rows", "num_windows", "num_tokens"):
        assert getattr(some, name) == pytest.approx(getattr(exact, name), rel=0.1), name
    assert some.padding == pytest.approx(exact.padding, abs=0.01)


@pytest.mark.parametrize("collate", ["bucket", "pack"])
def test_a_bar_longer_than_a_row_is_refused_by_name_and_remedy(simulated, collate):
    index = simulated(0, 5, 1, 12.0, 4.0)
    index.bar_tokens[3][-1] = 500
    index.__post_init__()
    config = PlanConfig(max_seq_len=100, collate=collate, global_batch=2)
    bar = int(index.bars[3]) - 1
    needed = bar_lines(index, 3).tokens(bar, bar + 1)
    message = (
        f"piece 00000003: bar {bar + 1} takes {needed} tokens .* a row 100; "
        f"raise --max_seq_len to at least {needed}, .* --max_bar_tokens 100"
    )
    with pytest.raises(BatchError, match=message):
        list(iterate_steps(index, config))
    with pytest.raises(BatchError, match=message):
        check_bars_fit(index, config.max_seq_len)
    check_bars_fit(index, needed)
    list(iterate_steps(index, replace(config, max_seq_len=needed)))


def test_a_split_without_pieces_is_refused(simulated):
    index = simulated(0, 0, 1, 6.0, 4.0)
    with pytest.raises(BatchError, match="without pieces"):
        next(iterate_steps(index, PlanConfig()))


def test_row_lengths_are_multiples_and_end_at_the_longest_row():
    assert PlanConfig(max_seq_len=256).row_lengths == (256,)
    assert PlanConfig(max_seq_len=1300).row_lengths == (512, 1024, 1300)
    assert len(PlanConfig(max_seq_len=8192).row_lengths) == 16
    assert PlanConfig(max_seq_len=8192, collate="pack").row_lengths == (8192,)


def test_fingerprint_changes_with_settings_and_with_shards(simulated):
    index, other = simulated(0, 9, 2, 6.0, 4.0), simulated(1, 9, 2, 6.0, 4.0)
    config = PlanConfig()
    prints = {
        plan_fingerprint(index, config),
        plan_fingerprint(other, config),
        plan_fingerprint(index, replace(config, seed=5)),
        plan_fingerprint(index, replace(config, global_batch=5)),
    }
    assert len(prints) == 4
    assert plan_fingerprint(index, config) in prints


@pytest.mark.parametrize(
    "wrong", [{"global_batch": 0}, {"seed": -1}, {"collate": "none"}, {"max_seq_len": 0}]
)
def test_settings_outside_their_range_are_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        PlanConfig(**wrong)


@pytest.mark.parametrize("damaged", [{}, {"format": 99}, {"format": 2}, {"format": 3, "epoch": 0}])
def test_a_damaged_cursor_is_refused(damaged):
    with pytest.raises(BatchError, match="cursor"):
        Cursor.from_json(damaged)
