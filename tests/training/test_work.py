from dataclasses import replace

import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.model.attention import build_plan
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.injection import open_layout
from meloformer.model.masks import RULES
from meloformer.training.ranks import Ranks
from meloformer.training.step import StepCounts, count_step
from meloformer.training.work import PairRate, PairRates, layout_flops, pair_rate, step_flops
from tests.layouts import as_torch, random_layout, tiny_config, with_open


@pytest.mark.parametrize("name", sorted(RULES))
def test_pairs_per_query_are_those_of_the_attention_masks(name: str) -> None:
    layout = as_torch(random_layout(3, rows=3, length=256))
    plan = build_plan(layout, RULES[name])
    found = pair_rate(layout, RULES[name], num_queries=10**6)

    is_token, is_summary = layout.piece_BT >= 0, layout.piece_BS >= 0
    shares = [group.share for group in RULES[name]]
    expected = 0.0
    for share, call in zip(shares, plan.update, strict=True):
        order = call.order_BT
        real = is_token if order is None else torch.gather(is_token, 1, order)
        pairs = call.mask[:, 0][real].sum()  # type: ignore[index]
        expected += share / sum(shares) * float(pairs) / int(is_token.sum())
    assert found.update == pytest.approx(expected)
    summarize = plan.summarize.mask[:, 0][is_summary].sum()  # type: ignore[index]
    num_bars = int(is_summary.sum())
    assert found.summarize == pytest.approx(float(summarize) / num_bars)

    opened = build_plan(open_layout(layout, is_summary), RULES[name]).opened
    assert opened is not None and opened.summarize is not None
    slots = layout.piece_BS.shape[1]
    among_them = opened.summarize.mask[:, 0][is_summary].sum()  # type: ignore[index]
    by_tokens = opened.update[0].mask[:, 0, :, slots : 2 * slots].sum()  # type: ignore[index]
    assert found.opened == pytest.approx(float(among_them + by_tokens) / num_bars)


def test_a_sample_of_queries_comes_close_to_all_of_them() -> None:
    layout = as_torch(random_layout(4, rows=4, length=512))
    every = pair_rate(layout, RULES["halves"], num_queries=10**6)
    some = pair_rate(layout, RULES["halves"], num_queries=200)
    assert some.update == pytest.approx(every.update, rel=0.1)


def batch_of(seed: int, length: int) -> Batch:
    layout = as_torch(random_layout(seed, rows=2, length=length))
    empty = torch.zeros_like(layout.piece_BT)
    return Batch(
        ids_BT=empty,
        targets_BT=empty,
        layout=layout,
        blocks=None,
        num_rows=2,
        num_targets=0,
        num_notes=0,
    )


def test_a_step_of_short_rows_is_not_counted_at_the_rate_of_long_ones() -> None:
    rule = RULES["full"]
    short, long = batch_of(5, 128), batch_of(6, 1024)
    rates = PairRates(rule)
    assert rates.of_step([long]) == pair_rate(long.layout, rule)
    assert rates.of_step([short]) == pair_rate(short.layout, rule)

    tokens = [int((batch.layout.piece_BT >= 0).sum()) for batch in (short, long)]
    pairs = [
        pair_rate(batch.layout, rule).update * n
        for batch, n in zip((short, long), tokens, strict=True)
    ]
    assert rates.of_step([short, long]).update == pytest.approx(sum(pairs) / sum(tokens))


def test_padding_and_masked_pairs_are_no_work() -> None:
    counts = StepCounts(
        targets=90, tokens=100, positions=1000, summaries=5, wait_seconds=0.0, rank_seconds=(0.0,)
    )
    rate = PairRate(update=7.0, summarize=20.0, opened=30.0)
    pairs = StepPairs(update=700.0, summarize=100.0)
    assert step_flops(tiny_config(), counts, rate) == training_flops(tiny_config(), 100, 5, pairs)
    pairs = replace(pairs, opened=90.0)
    found = step_flops(tiny_config(), replace(counts, open_summaries=3), rate)
    assert found == training_flops(tiny_config(), 100, 5, pairs, num_open=3)


def test_rows_to_come_have_open_summaries_as_often_as_in_training() -> None:
    layout = as_torch(random_layout(3, rows=3, length=256))
    closed, a_third, every = (
        layout_flops(tiny_config(open_summary_rate=rate), layout) for rate in (0.0, 1 / 3, 1.0)
    )
    assert closed < a_third < every
    assert a_third - closed == pytest.approx((every - closed) / 3)


def test_a_step_counts_the_bars_that_have_an_open_summary() -> None:
    batches = [batch_of(seed, 128) for seed in (5, 6)]
    opened = with_open(random_layout(5, rows=2, length=128), seed=5)
    batches[0] = replace(batches[0], layout=as_torch(opened))
    ranks = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
    counts = count_step(batches, 0.0, ranks)
    num_open = int((opened.open_BS >= 0).sum())
    assert 0 < counts.open_summaries == num_open < counts.summaries
