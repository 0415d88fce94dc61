import numpy as np
import pytest

from meloformer.batches.collate import Collator
from meloformer.batches.plan import PlanConfig, iterate_steps
from meloformer.batches.share import micro_batches
from meloformer.batches.simulated import SimulatedSplit
from meloformer.batches.windows import bar_lines
from meloformer.tokens.windows import bar_starts


def test_a_simulated_piece_has_the_lengths_that_its_index_states():
    index = SimulatedSplit(100, pieces_per_shard=40)
    assert [len(index.pieces_of_shard(shard)) for shard in range(index.num_shards)] == [40, 40, 20]
    for shard in range(index.num_shards):
        tokens, bars = index.lengths(shard)
        for row, piece in enumerate(index.pieces_of_shard(shard)):
            ids = index.read(piece)
            assert len(ids) == tokens[row] == bar_lines(index, piece).tokens(0, bars[row])
            assert np.array_equal(bar_starts(ids), index.bar_starts(piece))


@pytest.mark.parametrize("collate", ["bucket", "pack"])
def test_a_simulated_split_trains(collate):
    index = SimulatedSplit(60, pieces_per_shard=20)
    collator, config = Collator(index=index), PlanConfig(collate=collate, global_batch=6)
    for step in iterate_steps(index, config):
        for spec in micro_batches(step, 0, 1, 3):
            batch = collator(spec)
            assert batch.num_rows <= 3 and batch.num_notes > 0
