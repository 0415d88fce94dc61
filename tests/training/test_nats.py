"""Sums by kind against a walk over single targets; the loss that travels with them."""

import math
from collections import defaultdict

import pytest
import torch

from meloformer.batches.batch import IGNORE_INDEX, Batch
from meloformer.batches.collate import collate_rows
from meloformer.model.masks import Layout
from meloformer.tokens.vocabulary import BOS, KIND_OF, Kind, token_id
from meloformer.training.nats import KindTotals
from meloformer.training.ranks import Ranks

ALONE = Ranks(rank=0, local_rank=0, world_size=1, device=torch.device("cpu"))
IDS = [
    BOS,
    token_id(Kind.LENGTH, 0),
    token_id(Kind.BAR, 3),
    token_id(Kind.INSTRUMENT, 1),
    token_id(Kind.ONSET, 0),
    token_id(Kind.PITCH, 60),
    token_id(Kind.PITCH, 64),
]
BARS = [-1, -1, 0, 0, 0, 0, 0]


def batch_of_one_bar() -> Batch:
    """A prefix and a bar of two notes, then a position of padding."""
    empty = collate_rows([[]], len(IDS) + 1, None)
    targets = torch.tensor([[*IDS[1:], IGNORE_INDEX, IGNORE_INDEX]])
    fields = {name: getattr(empty.layout, name) for name in Layout.__dataclass_fields__}
    fields["bar_BT"] = torch.tensor([[*BARS, -1]])
    values = {name: getattr(empty, name) for name in Batch.__dataclass_fields__}
    return Batch(**values | {"targets_BT": targets, "layout": Layout(**fields)})


def test_each_target_counts_for_its_kind_and_padding_for_none() -> None:
    batch = batch_of_one_bar()
    nats_BT = torch.arange(1.0, 9.0)[None]
    totals = KindTotals(ALONE)
    totals.add(nats_BT, batch)
    totals.add(nats_BT, batch)
    loss, nats, sums = totals.over_ranks([torch.tensor(0.25), torch.tensor(0.5)], [2.0, 0.0])

    expected = defaultdict(list)
    for value, target in zip(nats_BT[0].tolist(), IDS[1:], strict=False):
        expected[Kind(int(KIND_OF[target])).name].append(value)
    assert nats.per_kind == {kind: sum(v) / len(v) for kind, v in expected.items()}
    assert (nats.num_targets, nats.num_notes) == (12, 4)
    # The bar token and what follows it, over two notes; not the length bin of the prefix.
    assert nats.per_note == pytest.approx((2 + 3 + 4 + 5 + 6) / 2)
    assert nats.per_token == pytest.approx(sum(range(1, 7)) / 6)
    assert (loss, sums) == (0.75, [2.0, 0.0])


def test_totals_begin_again_after_they_were_read() -> None:
    totals = KindTotals(ALONE)
    totals.add(torch.ones(1, 8), batch_of_one_bar())
    totals.over_ranks()
    loss, nats, _ = totals.over_ranks()
    assert (loss, nats.num_targets, nats.per_kind) == (0.0, 0, {})


def test_what_is_not_finite_stays_with_its_kind_and_with_the_loss() -> None:
    batch = batch_of_one_bar()
    nats_BT = torch.ones(1, 8)
    nats_BT[0, 1] = torch.nan  # the target there is the bar token
    totals = KindTotals(ALONE)
    totals.add(nats_BT, batch)
    loss, nats, _ = totals.over_ranks([nats_BT.sum()])
    assert math.isnan(loss) and math.isnan(nats.per_kind["BAR"]) and math.isnan(nats.per_note)
    assert nats.per_kind["PITCH"] == nats.per_kind["ONSET"] == 1.0
