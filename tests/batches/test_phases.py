"""Phases: when they change, which shapes they declare, and that they change nothing else."""

from collections import Counter
from itertools import chain, islice

import pytest

from meloformer.batches.collate import Collator
from meloformer.batches.phases import Phase, PhaseConfig, PhaseEnds, batch_shapes, phase_at
from meloformer.batches.plan import Cursor, PlanConfig, iterate_steps
from meloformer.batches.share import micro_batches
from meloformer.batches.stream import TrainStream
from meloformer.errors import ConfigError
from meloformer.shards.reader import ShardFolder


def test_phases_change_after_steps_ten_and_one_hundred():
    config = PhaseConfig(micro_batch_rows=6, num_workers=8)
    assert {phase_at(step, config) for step in range(1, 11)} == {Phase(1, 1, 0)}
    assert {phase_at(step, config) for step in range(11, 101)} == {Phase(2, 1, 8)}
    assert {phase_at(step, config) for step in range(101, 400)} == {Phase(3, 6, 8)}


def test_without_phases_every_step_is_of_the_last_phase():
    config = PhaseConfig(phases="off", micro_batch_rows=2, num_workers=1)
    assert {phase_at(step, config) for step in (1, 11, 101)} == {Phase(3, 2, 1)}


@pytest.mark.parametrize(
    ("ends", "numbers"),
    [
        ((0, 2), [2, 2, 3, 3]),
        ((2, 2), [1, 1, 3, 3]),
        ((0, 0), [3, 3, 3, 3]),
        ((1, 3), [1, 2, 2, 3]),
    ],
)
def test_a_phase_of_no_step_is_left_out(ends, numbers):
    config = PhaseConfig(ends=PhaseEnds(phase_1_until=ends[0], phase_2_until=ends[1]))
    assert [phase_at(step, config).number for step in range(1, 5)] == numbers


@pytest.mark.parametrize(("collate", "lengths"), [("bucket", [512, 1024]), ("pack", [1024])])
def test_declared_shapes_are_all_lengths_times_all_rows(collate, lengths):
    plan = PlanConfig(max_seq_len=1024, collate=collate)
    shapes = batch_shapes(plan, PhaseConfig(micro_batch_rows=6))
    assert shapes == [(rows, length, 128) for rows in (1, 6) for length in lengths]
    assert len(batch_shapes(plan, PhaseConfig(micro_batch_rows=1))) == len(lengths)
    without = PhaseConfig(micro_batch_rows=6, ends=PhaseEnds(phase_1_until=0, phase_2_until=0))
    assert len(batch_shapes(plan, without)) == len(lengths)


@pytest.mark.parametrize("wrong", [{"micro_batch_rows": 0}, {"num_workers": -1}])
def test_impossible_phases_are_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        PhaseConfig(**wrong)


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"phase_1_until": -1}, "--phase_1_until -1: allowed: 0 or more"),
        (
            {"phase_1_until": 200},
            "--phase_2_until 100: allowed: --phase_1_until (200) or more; without phases: "
            "--phases off",
        ),
    ],
)
def test_ends_out_of_order_are_refused_by_the_names_of_their_flags(wrong, words):
    with pytest.raises(ConfigError) as refused:
        PhaseEnds(**wrong)
    assert str(refused.value) == words


PLAN = PlanConfig(max_seq_len=256, global_batch=6, bucket_multiple=64)
NUM_STEPS = 8


def phases(num_workers):
    ends = PhaseEnds(phase_1_until=2, phase_2_until=5)
    return PhaseConfig(micro_batch_rows=2, num_workers=num_workers, ends=ends)


def rows_of(batches):
    """What the rows hold, whatever they are padded to and whichever batch they are in."""
    found = Counter()
    for batch in batches:
        for ids, targets, piece in zip(
            batch.ids_BT, batch.targets_BT, batch.layout.piece_BT, strict=True
        ):
            if (held := piece >= 0).any():
                found[tuple(ids[held].tolist()), tuple(targets[held].tolist())] += 1
    return found


@pytest.fixture(scope="module")
def index(chorale_shards):
    return ShardFolder.open(chorale_shards).split("train")


@pytest.fixture(scope="module")
def planned(index):
    """Rows of the first steps, made one by one from the plan, without stream, phases or ranks."""
    collate = Collator(index=index)
    steps = islice(iterate_steps(index, PLAN, Cursor()), NUM_STEPS)
    return [rows_of(map(collate, micro_batches(step, 0, 1, 1))) for step in steps]


def streams_of(index, world_size, num_workers, state=None, step=0):
    return [
        TrainStream(
            Collator(index=index),
            PLAN,
            phases(num_workers),
            rank=rank,
            world_size=world_size,
            state=state,
            step=step,
        )
        for rank in range(world_size)
    ]


def rows_over_ranks(streams):
    return rows_of(chain.from_iterable([next(stream) for stream in streams]))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (2, 1), (3, 1)])
def test_no_row_is_lost_or_repeated_where_phases_change(index, planned, world_size, num_workers):
    streams = streams_of(index, world_size, num_workers)
    found = [rows_over_ranks(streams) for _ in planned]
    for stream in streams:
        stream.close()
    assert found == planned
    assert sum(map(len, planned)) > NUM_STEPS


def test_any_number_of_ranks_goes_on_from_any_phase_and_from_where_two_of_them_meet(index, planned):
    """In phase 1, at both switches, in phases 2 and 3: stopped after each step, on 1 to 3 ranks."""
    found, state = [], None
    for step in range(NUM_STEPS):
        streams = streams_of(index, 1 + step % 3, 0, state, step)
        found.append(rows_over_ranks(streams))
        (state,) = [*{str(stream.state()): stream.state() for stream in streams}.values()]
    assert found == planned
