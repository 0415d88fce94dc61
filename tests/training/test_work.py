import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.model.attention import build_plan
from meloformer.model.counts import StepPairs, training_flops
from meloformer.model.masks import RULES
from meloformer.training.step import StepCounts
from meloformer.training.work import PairRate, PairRates, pair_rate, step_flops
from tests.layouts import as_torch, random_layout, tiny_config


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
    assert found.summarize == pytest.approx(float(summarize) / int(is_summary.sum()))


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
    found = step_flops(tiny_config(), counts, PairRate(update=7.0, summarize=20.0))
    pairs = StepPairs(update=700.0, summarize=100.0)
    assert found == training_flops(tiny_config(), 100, 5, pairs)
