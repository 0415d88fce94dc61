import json
import multiprocessing
from collections import Counter
from dataclasses import dataclass
from itertools import islice

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.batches.attributes import ALL_ATTRIBUTES
from meloformer.batches.collate import Collator
from meloformer.batches.phases import PhaseConfig, PhaseEnds
from meloformer.batches.piece_index import PieceIndex
from meloformer.batches.plan import Cursor, PlanConfig, iterate_steps
from meloformer.batches.stream import TrainStream, ValidationStream
from meloformer.errors import BatchError, ShardError
from meloformer.shards.reader import ShardFolder

OFF = PhaseConfig(phases="off", micro_batch_rows=2, num_workers=0)


@dataclass
class Echo:
    """Hands back the spec in place of a batch, so that a test sees which windows went where."""

    index: PieceIndex

    def __call__(self, spec):
        return spec


class Broken:
    """Fails at the piece with this number."""

    def __init__(self, index, piece):
        self.index, self.piece = index, piece

    def __call__(self, spec):
        if any(window.piece == self.piece for row in spec.rows for window in row):
            raise ShardError(f"shard of piece {self.piece} is damaged; copy it again")
        return spec


def rows_of(step):
    return Counter(row for spec in step for row in spec.rows if row)


def rows_of_ranks(streams, num_steps):
    """Rows of each step over all ranks."""
    together = []
    for _ in range(num_steps):
        steps = [next(stream) for stream in streams]
        together.append(sum((rows_of(step) for step in steps), Counter()))
    return together


def planned(index, config, num_steps):
    """Rows of each step as the plan has them, epoch after epoch."""
    cursor, rows = Cursor(), []
    while len(rows) < num_steps:
        for step in iterate_steps(index, config, cursor):
            rows.append(Counter(row.windows for row in step.rows))
            cursor = step.cursor_after
    return rows[:num_steps]


def resumed_at(stream):
    return json.loads(json.dumps(stream.state()))


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_ranks_together_hand_out_the_plan_over_epochs(data, corpora, plan_settings):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    world = data.draw(st.integers(1, 3))
    steps_per_epoch = len(list(iterate_steps(index, config)))
    num_steps = min(2 * steps_per_epoch + 1, 40)
    streams = [
        TrainStream(Echo(index), config, OFF, rank=r, world_size=world) for r in range(world)
    ]
    assert rows_of_ranks(streams, num_steps) == planned(index, config, num_steps)
    assert len({json.dumps(stream.state()) for stream in streams}) == 1


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_stream_goes_on_in_another_world_with_exactly_the_remaining_steps(
    data, corpora, plan_settings
):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    done = data.draw(st.integers(1, 12))
    first = TrainStream(Echo(index), config, OFF)
    for _ in range(done):
        next(first)
    other = PhaseConfig(phases="off", micro_batch_rows=data.draw(st.integers(1, 3)), num_workers=0)
    world = data.draw(st.integers(1, 3))
    streams = [
        TrainStream(
            Echo(index),
            config,
            other,
            rank=rank,
            world_size=world,
            state=resumed_at(first),
            step=first.step,
        )
        for rank in range(world)
    ]
    assert rows_of_ranks(streams, 8) == planned(index, config, done + 8)[done:]
    assert {stream.step for stream in streams} == {done + 8}


@pytest.mark.parametrize("collate", ["bucket", "pack"])
def test_two_ranks_with_two_workers_each_see_every_window_of_an_epoch_once(simulated, collate):
    index = simulated(1, 120, 5, 6.0, 12.0)
    config = PlanConfig(max_seq_len=128, collate=collate, global_batch=5, group_shards=2)
    phases = PhaseConfig(phases="off", micro_batch_rows=2, num_workers=2)
    num_steps = len(list(iterate_steps(index, config)))
    seen = Counter()
    for rank in range(2):
        stream = TrainStream(Echo(index), config, phases, rank=rank, world_size=2)
        for step in islice(stream, num_steps):
            seen.update(window for spec in step for row in spec.rows for window in row)
        assert stream.cursor == Cursor(epoch=1)
        stream.close()
    bars = Counter((w.piece, bar) for w in seen for bar in range(w.first_bar, w.last_bar))
    assert set(seen.values()) == {1} and set(bars.values()) == {1}
    assert len(bars) == index.bars.sum()


def test_workers_hand_out_real_batches_in_the_order_of_the_plan(chorale_shards):
    index = ShardFolder.open(chorale_shards).split("train")
    collator = Collator(index=index, attributes=ALL_ATTRIBUTES)
    config = PlanConfig(max_seq_len=1024, global_batch=4)
    streams = [
        TrainStream(collator, config, PhaseConfig(phases="off", num_workers=n)) for n in (0, 2)
    ]
    num_steps = len(list(iterate_steps(index, config)))
    notes = 0
    for _ in range(num_steps):
        for alone, by_workers in zip(*map(next, streams), strict=True):
            assert torch.equal(alone.ids_BT, by_workers.ids_BT)
            assert torch.equal(alone.layout.bar_BT, by_workers.layout.bar_BT)
            notes += alone.num_notes
    assert notes == sum(index.sizes(piece).notes for piece in range(index.num_pieces))
    for stream in streams:
        stream.close()


def test_every_rank_can_name_the_pieces_of_every_micro_batch_of_the_last_step(chorale_shards):
    index = ShardFolder.open(chorale_shards).split("train")
    config = PlanConfig(max_seq_len=1024, global_batch=8)
    phases = PhaseConfig(phases="off", micro_batch_rows=2, num_workers=0)
    streams = [
        TrainStream(Echo(index), config, phases, rank=rank, world_size=2) for rank in range(2)
    ]
    for _ in range(2):
        specs = [next(stream) for stream in streams]
        expected = [
            [[index.key(window.piece) for row in spec.rows for window in row] for spec in of_step]
            for of_step in zip(*specs, strict=True)
        ]
        assert sum(len(keys) for of_step in expected for keys in of_step) >= 8
        assert [stream.piece_keys() for stream in streams] == [expected, expected]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_the_cursor_counts_what_was_handed_out_and_not_what_was_prefetched(simulated, num_workers):
    index = simulated(1, 100, 5, 6.0, 12.0)
    config = PlanConfig(max_seq_len=128, global_batch=3, group_shards=2)
    phases = PhaseConfig(phases="off", micro_batch_rows=1, num_workers=num_workers)
    stream = TrainStream(Echo(index), config, phases)
    assert stream.cursor == Cursor()
    for step in iterate_steps(index, config):
        assert rows_of(next(stream)) == Counter(row.windows for row in step.rows)
        assert stream.cursor == step.cursor_after
        assert stream.facts.num_windows == sum(len(row.windows) for row in step.rows)
    stream.close()


PHASES = PhaseConfig(
    micro_batch_rows=3, num_workers=2, ends=PhaseEnds(phase_1_until=3, phase_2_until=5)
)


def phase_by_step(stream, num_steps):
    """Number of the phase and rows per micro-batch of each step."""
    found = []
    for step in islice(stream, num_steps):
        workers = len(multiprocessing.active_children())
        found.append((stream.phase.number, workers, {len(spec.rows) for spec in step}))
    return found


EXPECTED = [(1, 0, {1})] * 3 + [(2, 2, {1})] * 2 + [(3, 2, {3})] * 4


def test_phases_switch_at_their_step_and_lose_or_repeat_nothing(simulated):
    index = simulated(1, 100, 5, 6.0, 12.0)
    config = PlanConfig(max_seq_len=128, global_batch=6, group_shards=2)
    stream = TrainStream(Echo(index), config, PHASES)
    assert phase_by_step(stream, 9) == EXPECTED
    stream.close()
    assert not multiprocessing.active_children()
    stream = TrainStream(Echo(index), config, PHASES)
    assert rows_of_ranks([stream], 9) == planned(index, config, 9)
    stream.close()


@pytest.mark.parametrize("done", [2, 3, 4, 5, 6])
def test_a_resumed_run_is_in_the_phase_of_its_step(simulated, done):
    index = simulated(1, 100, 5, 6.0, 12.0)
    config = PlanConfig(max_seq_len=128, global_batch=6, group_shards=2)
    first = TrainStream(Echo(index), config, OFF)
    for _ in range(done):
        next(first)
    stream = TrainStream(Echo(index), config, PHASES, state=resumed_at(first), step=done)
    assert phase_by_step(stream, 9 - done) == EXPECTED[done:]
    stream.close()


@pytest.mark.parametrize("num_workers", [0, 2])
def test_an_error_in_a_worker_arrives_with_its_own_type_and_message(simulated, num_workers):
    index = simulated(1, 30, 1, 6.0, 4.0)
    phases = PhaseConfig(phases="off", num_workers=num_workers)
    stream = TrainStream(Broken(index, 17), PlanConfig(max_seq_len=64), phases)
    with pytest.raises(ShardError) as caught:
        list(islice(stream, 20))
    assert str(caught.value) == "shard of piece 17 is damaged; copy it again"
    stream.close()


def test_a_failed_step_does_not_move_the_cursor(simulated):
    index = simulated(1, 30, 1, 6.0, 4.0)
    stream = TrainStream(Broken(index, 17), PlanConfig(max_seq_len=64, global_batch=8), OFF)
    before = stream.cursor
    with pytest.raises(ShardError):
        while True:
            before = stream.cursor
            next(stream)
    assert stream.cursor == before


def test_streams_leave_the_random_numbers_of_the_run_alone(simulated):
    index = simulated(1, 30, 1, 6.0, 4.0)
    before = torch.get_rng_state()
    stream = TrainStream(Echo(index), PlanConfig(max_seq_len=64, global_batch=2), PHASES)
    list(islice(stream, 6))
    stream.close()
    list(ValidationStream(Echo(index), PlanConfig(max_seq_len=64)))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_state_of_another_plan_is_refused(simulated):
    index = simulated(1, 30, 1, 6.0, 4.0)
    state = TrainStream(Echo(index), PlanConfig(max_seq_len=64, seed=1), OFF).state()
    with pytest.raises(BatchError, match=r"plan .* resume with the same shards, --seed"):
        TrainStream(Echo(index), PlanConfig(max_seq_len=64, seed=2), OFF, state=state)


def test_a_bar_that_no_row_takes_is_refused_before_the_first_step(simulated):
    index = simulated(1, 30, 1, 6.0, 12.0)
    with pytest.raises(BatchError, match="raise --max_seq_len"):
        TrainStream(Echo(index), PlanConfig(max_seq_len=16), OFF)


@given(data=st.data())
@settings(max_examples=25, deadline=None)
def test_validation_sees_each_bar_once_over_all_ranks_in_equal_shares(data, corpora, plan_settings):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    world, rows = data.draw(st.integers(1, 4)), data.draw(st.integers(1, 3))
    shares = [
        list(ValidationStream(Echo(index), config, rank=r, world_size=world, micro_batch_rows=rows))
        for r in range(world)
    ]
    shapes = [[(spec.seq_len, len(spec.rows)) for spec in share] for share in shares]
    assert all(shape == shapes[0] for shape in shapes)
    windows = [w for share in shares for spec in share for row in spec.rows for w in row]
    bars = Counter((w.piece, bar) for w in windows for bar in range(w.first_bar, w.last_bar))
    assert set(bars.values()) == {1} and len(bars) == index.bars.sum()
    assert {length for length, _ in shapes[0]} <= set(config.row_lengths)


def test_validation_rows_do_not_depend_on_ranks_nor_on_when_they_are_asked_for(simulated):
    index = simulated(1, 60, 3, 6.0, 12.0)
    config = PlanConfig(max_seq_len=128)

    def rows(world_size, **limits):
        streams = [
            ValidationStream(Echo(index), config, rank=r, world_size=world_size, **limits)
            for r in range(world_size)
        ]
        seen = [sum((rows_of([spec]) for s in streams for spec in s), Counter()) for _ in range(2)]
        assert seen[0] == seen[1]
        return seen[0]

    assert rows(1) == rows(3)
    assert rows(1, max_rows=4) == rows(3, max_rows=4)
    assert sum(rows(1, max_rows=4).values()) == 4


def test_a_validation_split_without_pieces_is_refused(simulated):
    with pytest.raises(BatchError, match="without pieces"):
        ValidationStream(Echo(simulated(0, 0, 1, 6.0, 4.0)), PlanConfig())
