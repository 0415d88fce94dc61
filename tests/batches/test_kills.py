"""Whatever stops and restarts a run, on whatever ranks and workers: one and the same sequence."""

import json
from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.batches.mixture import Mixture
from meloformer.batches.phases import PhaseConfig, PhaseEnds
from meloformer.batches.plan import Cursor, PlanConfig, iterate_steps
from meloformer.batches.stream import TrainStream
from meloformer.batches.windows import bar_lines


class Echo:
    """Hands back the spec in place of a batch."""

    def __init__(self, index):
        self.index = index

    def __call__(self, spec):
        return spec


def planned(index, config, num_steps):
    """Rows of each step, epoch after epoch, without ranks, workers or stops."""
    epoch, rows = 0, []
    while len(rows) < num_steps:
        for step in iterate_steps(index, config, Cursor(epoch=epoch)):
            rows.append(Counter(row.windows for row in step.rows))
        epoch += 1
    return rows[:num_steps]


def run(index, config, phases, world_size, saved, num_steps, num_lost):
    """Train from a checkpoint on, save after some steps, and be killed some steps later.

    Returns:
        Rows of the steps up to the checkpoint over all ranks, and the checkpoint.
    """
    step, state = saved
    streams = [
        TrainStream(
            Echo(index), config, phases, rank=r, world_size=world_size, state=state, step=step
        )
        for r in range(world_size)
    ]
    seen, states = [], []
    for number in range(num_steps + num_lost):
        of_ranks = [next(stream) for stream in streams]
        assert len({tuple(spec.seq_len for spec in specs) for specs in of_ranks}) == 1
        rows = Counter(row for specs in of_ranks for spec in specs for row in spec.rows if row)
        if number < num_steps:
            seen.append(rows)
            states = [json.dumps(stream.state()) for stream in streams]
    for stream in streams:
        stream.close()
    assert len(set(states)) == 1
    return seen, (step + num_steps, json.loads(states[0]))


@st.composite
def starts(draw):
    """One start of a run: ranks, rows, phases, steps to its last checkpoint, steps lost."""
    phases = PhaseConfig(
        phases=draw(st.sampled_from(["on", "off"])),
        micro_batch_rows=draw(st.integers(1, 4)),
        num_workers=0,
        ends=PhaseEnds(
            phase_1_until=draw(st.integers(0, 3)), phase_2_until=draw(st.integers(3, 6))
        ),
    )
    return phases, draw(st.integers(1, 4)), draw(st.integers(1, 12)), draw(st.integers(0, 3))


def check_runs(index, config, all_starts):
    saved, seen = (0, None), []
    for phases, world_size, num_steps, num_lost in all_starts:
        rows, saved = run(index, config, phases, world_size, saved, num_steps, num_lost)
        seen += rows
    assert seen == planned(index, config, len(seen))

    # Epoch by epoch: every bar of every piece that was begun, once.
    done = 0
    for epoch in range(len(seen)):
        length = len(list(iterate_steps(index, config, Cursor(epoch=epoch))))
        of_epoch, done = seen[done : done + length], done + length
        bars = Counter(
            (window.piece, bar)
            for rows in of_epoch
            for windows in rows.elements()
            for window in windows
            for bar in range(window.first_bar, window.last_bar)
        )
        assert set(bars.values()) <= {1}
        if done > len(seen):
            break
        pieces = Counter(piece for piece, _ in bars)
        assert all(count == bar_lines(index, piece).num_bars for piece, count in pieces.items())


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_killed_and_resumed_runs_train_on_the_sequence_of_an_undisturbed_one(
    data, corpora, plan_settings
):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    check_runs(index, config, data.draw(st.lists(starts(), min_size=1, max_size=4)))


@given(data=st.data())
@settings(max_examples=20, deadline=None)
def test_the_same_holds_for_mixtures(data, corpora, plan_settings):
    parts = [data.draw(corpora) for _ in range(data.draw(st.integers(1, 3)))]
    weights = [data.draw(st.sampled_from([0.1, 0.5, 1.0, 2.0, 2.5])) for _ in parts]
    index = Mixture(parts, weights, seed=data.draw(st.integers(0, 99)))
    config = PlanConfig(**data.draw(plan_settings))
    check_runs(index, config, data.draw(st.lists(starts(), min_size=1, max_size=4)))


@given(data=st.data())
@settings(max_examples=4, deadline=None)
def test_the_same_holds_with_data_workers(data, corpora, plan_settings):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    workers = [
        (PhaseConfig(phases="off", micro_batch_rows=2, num_workers=number), world_size, 4, 1)
        for number, world_size in data.draw(st.permutations([(0, 2), (1, 1), (2, 1)]))
    ]
    check_runs(index, config, workers)
