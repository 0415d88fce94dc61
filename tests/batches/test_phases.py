import pytest

from meloformer.batches.phases import Phase, PhaseConfig, batch_shapes, phase_at
from meloformer.batches.plan import PlanConfig
from meloformer.errors import ConfigError


def test_phases_change_after_steps_ten_and_one_hundred():
    config = PhaseConfig(micro_batch_rows=6, num_workers=8)
    assert {phase_at(step, config) for step in range(1, 11)} == {Phase(1, 1, 0)}
    assert {phase_at(step, config) for step in range(11, 101)} == {Phase(2, 1, 8)}
    assert {phase_at(step, config) for step in range(101, 400)} == {Phase(3, 6, 8)}


def test_without_phases_every_step_is_of_the_last_phase():
    config = PhaseConfig(phases="off", micro_batch_rows=2, num_workers=1)
    assert {phase_at(step, config) for step in (1, 11, 101)} == {Phase(3, 2, 1)}


@pytest.mark.parametrize(("collate", "lengths"), [("bucket", [512, 1024]), ("pack", [1024])])
def test_declared_shapes_are_all_lengths_times_all_rows(collate, lengths):
    plan = PlanConfig(max_seq_len=1024, collate=collate)
    shapes = batch_shapes(plan, PhaseConfig(micro_batch_rows=6))
    assert shapes == [(rows, length, 128) for rows in (1, 6) for length in lengths]
    assert len(batch_shapes(plan, PhaseConfig(micro_batch_rows=1))) == len(lengths)


@pytest.mark.parametrize(
    "wrong", [{"micro_batch_rows": 0}, {"num_workers": -1}, {"first_until": 200}]
)
def test_impossible_phases_are_refused(wrong):
    with pytest.raises(ConfigError, match="allowed"):
        PhaseConfig(**wrong)
