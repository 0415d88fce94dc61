"""The beginning of a real step, cut to rows of one short length."""

from collections import Counter

import pytest

from meloformer.batches.collate import Collator
from meloformer.batches.phases import BatchShape, PhaseConfig
from meloformer.batches.plan import PlanConfig, iterate_steps
from meloformer.batches.stream import TrainStream
from meloformer.model.masks import num_summaries
from meloformer.shards.reader import ShardFolder

CONFIG = PlanConfig(max_seq_len=1024, global_batch=8)
SHAPE = BatchShape(2, 256, num_summaries(256))


@pytest.fixture
def stream(chorale_shards):
    index = ShardFolder.open(chorale_shards).split("train")
    phases = PhaseConfig(phases="off", micro_batch_rows=2, num_workers=0)
    return TrainStream(Collator(index=index), CONFIG, phases, world_size=2)


def test_a_short_step_is_made_of_the_beginnings_of_the_next_steps_windows(stream, chorale_shards):
    index = ShardFolder.open(chorale_shards).split("train")
    step = next(iterate_steps(index, CONFIG))
    starts = Counter(window[:2] for row in step.rows for window in row.windows)
    specs = stream.short_step(SHAPE, 2)
    assert [len(of_step) for of_step in specs] == [2, 2]
    rows = [row for of_step in specs for spec in of_step for row in spec.rows]
    assert len(rows) == 8 and all(len(row) == 1 for row in rows)
    taken = Counter(window[:2] for row in rows for window in row)
    assert taken <= starts


def test_its_rows_are_ragged_and_fit(stream):
    batches = [stream.collate(spec) for of_step in stream.short_step(SHAPE, 2) for spec in of_step]
    assert {tuple(batch.ids_BT.shape) for batch in batches} == {(2, 256)}
    targets = [batch.num_targets for batch in batches]
    assert min(targets) > 0 and len(set(targets)) > 1


def test_where_windows_run_out_every_micro_batch_has_a_row_before_one_has_two(stream):
    specs = stream.short_step(BatchShape(50, 256, num_summaries(256)), 2)
    filled = [sum(map(bool, spec.rows)) for of_step in specs for spec in of_step]
    assert max(filled) - min(filled) <= 1
    assert 0 < sum(filled) < 200
    assert all(len(spec.rows) == 50 for of_step in specs for spec in of_step)


def test_it_moves_nothing(stream):
    before = stream.state()
    stream.short_step(SHAPE, 2)
    assert stream.state() == before and stream.step == 0 and stream.facts is None
