import json
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.batches.augmentation import Augmentation
from meloformer.batches.collate import Collator
from meloformer.batches.facts import epoch_facts
from meloformer.batches.mixture import Mixture
from meloformer.batches.plan import (
    Cursor,
    PlanConfig,
    iterate_steps,
    plan_fingerprint,
    shard_groups,
)
from meloformer.batches.windows import Window, bar_lines
from meloformer.errors import ConfigError
from meloformer.shards.reader import ShardFolder


def times_taken(index, config, epoch):
    """How often an epoch takes each piece, by its key; every taken piece is taken whole."""
    bars = Counter()
    for step in iterate_steps(index, config, Cursor(epoch=epoch)):
        for window in (window for row in step.rows for window in row.windows):
            bars.update((window.piece, bar) for bar in range(window.first_bar, window.last_bar))
    assert set(bars.values()) <= {1}
    pieces = Counter(piece for piece, _ in bars)
    assert all(count == bar_lines(index, piece).num_bars for piece, count in pieces.items())
    return Counter(index.key(piece) for piece in pieces)


@pytest.fixture
def parts(simulated):
    """Two corpora whose pieces have different names."""
    first, second = simulated(0, 60, 3, 6.0, 4.0), simulated(1, 40, 2, 6.0, 4.0)
    object.__setattr__(second, "key", lambda piece: f"b{piece}")
    return [first, second]


CONFIG = PlanConfig(max_seq_len=128, global_batch=3, group_shards=2)


def test_a_whole_weight_takes_each_piece_so_often_in_every_epoch(parts):
    mixture = Mixture(parts, [2, 1], seed=0)
    for epoch in range(2):
        taken = times_taken(mixture, CONFIG, epoch)
        assert taken == Counter(
            {f"{p:08x}": 2 for p in range(60)} | {f"b{p}": 1 for p in range(40)}
        )


@pytest.mark.parametrize(("weight", "epochs"), [(0.5, 2), (0.25, 4), (1.5, 2)])
def test_a_share_of_a_weight_takes_other_pieces_each_epoch_until_all_had_their_turn(
    parts, weight, epochs
):
    mixture = Mixture(parts, [weight, 1], seed=3)
    each = [times_taken(mixture, CONFIG, epoch) for epoch in range(2 * epochs)]
    names = [f"{piece:08x}" for piece in range(60)]
    for start in (0, epochs):
        together = sum(each[start : start + epochs], Counter())
        assert {together[name] for name in names} == {round(weight * epochs)}
    sizes = [sum(taken[name] for name in names) for taken in each]
    assert max(sizes) - min(sizes) <= 3 and sum(sizes) == round(60 * weight * 2 * epochs)
    assert each[0] != each[1]
    other = times_taken(Mixture(parts, [weight, 1], seed=4), CONFIG, 0)
    assert other != each[0]


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_from_any_cursor_of_a_mixture_the_remaining_steps_follow(data, corpora, plan_settings):
    parts = [data.draw(corpora) for _ in range(data.draw(st.integers(1, 3)))]
    weights = [data.draw(st.sampled_from([0.1, 0.5, 1.0, 2.0, 2.5])) for _ in parts]
    index = Mixture(parts, weights, seed=data.draw(st.integers(0, 99)))
    config = PlanConfig(**data.draw(plan_settings))
    epoch = data.draw(st.integers(0, 3))
    steps = list(iterate_steps(index, config, Cursor(epoch=epoch)))
    for _ in range(min(4, len(steps))):
        done = data.draw(st.integers(1, len(steps)))
        after = steps[done - 1].cursor_after
        cursor = Cursor.from_json(json.loads(json.dumps(after.to_json())))
        if cursor.epoch == epoch:
            assert list(iterate_steps(index, config, cursor)) == steps[done:]


def test_shards_of_a_small_corpus_are_spread_over_the_epoch(simulated):
    parts = [simulated(0, 900, 90, 2.0, 2.0), simulated(1, 100, 10, 2.0, 2.0)]
    mixture = Mixture(parts, [1, 1], seed=0)
    order = mixture.order_shards(np.random.default_rng(0))
    holding = [shard for shard in range(mixture.num_shards) if mixture.pieces_of_shard(shard)]
    assert sorted(order.tolist()) == holding
    places = np.flatnonzero(order >= 90) / len(order)
    assert np.diff(places).max() < 0.15


@pytest.mark.parametrize("weight", [1, 3, 1.5])
def test_a_corpus_of_one_shard_is_taken_whole_and_comes_in_every_group_of_the_epoch(
    simulated, weight
):
    big, small = simulated(0, 900, 64, 3.0, 4.0), simulated(1, 120, 1, 3.0, 4.0)
    object.__setattr__(small, "key", lambda piece: f"b{piece}")
    mixture = Mixture([big, small], [1, weight], seed=0, group_shards=8)
    for epoch in range(2):
        found = []
        for group in shard_groups(mixture, replace(CONFIG, group_shards=8), epoch):
            rows = {shard: mixture.chosen(shard, epoch) for shard in group}
            taken = [
                mixture.pieces_of_shard(shard)[row]
                for shard, own in rows.items()
                for row in (own if own is not None else range(len(mixture.pieces_of_shard(shard))))
            ]
            found.append(Counter(mixture.key(piece)[0] == "b" for piece in taken))
        # The last group may hold a few shards only.
        assert all(counts[True] for counts in found[:-1])
        assert max(counts[True] for counts in found) <= 0.4 * 120 * weight
    together = sum((times_taken(mixture, CONFIG, epoch) for epoch in range(2)), Counter())
    assert {together[f"b{piece}"] for piece in range(120)} == {2 * weight}
    assert {together[f"{piece:08x}"] for piece in range(900)} == {2}


def test_weights_change_the_fingerprint_and_the_count(parts):
    mixtures = [Mixture(parts, weights, seed=0) for weights in ([1, 1], [2, 1], [1, 0.5])]
    assert len({plan_fingerprint(mixture, CONFIG) for mixture in mixtures}) == 3
    tokens = [epoch_facts(mixture, CONFIG).num_tokens for mixture in mixtures]
    assert tokens[2] < tokens[0] < tokens[1]
    for mixture, counted in zip(mixtures, tokens, strict=True):
        assert mixture.num_tokens == pytest.approx(counted, rel=0.15)


@pytest.mark.parametrize(
    ("weights", "message"),
    [([1], "1 weights for 2 folders"), ([1, 0], "more than 0"), ([1, float("nan")], "more than 0")],
)
def test_weights_that_say_nothing_are_refused(parts, weights, message):
    with pytest.raises(ConfigError, match=f"--data_weights.*{message}"):
        Mixture(parts, weights, seed=0)


def test_the_second_pass_over_a_piece_reads_the_same_tokens_and_shifts_them_otherwise(
    chorale_shards,
):
    part = ShardFolder.open(chorale_shards).split("train")
    mixture = Mixture([part], [2], seed=0)
    collator = Collator(index=mixture, augmentation=Augmentation(max_tempo_shift=8))
    differing = 0
    for piece in range(part.num_pieces):
        assert np.array_equal(mixture.read(piece), mixture.read(part.num_pieces + piece))
        assert np.array_equal(mixture.read(piece), part.read(piece))
        windows = [Window(number, 0, 2) for number in (piece, part.num_pieces + piece)]
        first, second = (collator.window_ids(0, window) for window in windows)
        differing += not np.array_equal(first, second)
    assert differing > part.num_pieces / 2
