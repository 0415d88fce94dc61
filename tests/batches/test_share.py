from collections import Counter

from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.batches.plan import PlanConfig, iterate_steps
from meloformer.batches.share import micro_batches, step_facts


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_the_ranks_together_have_each_row_of_a_step_once_in_any_world(data, corpora, plan_settings):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    world_size = data.draw(st.integers(1, 5))
    rows_per_rank = data.draw(st.integers(1, 4))
    for step in iterate_steps(index, config):
        shares = [micro_batches(step, r, world_size, rows_per_rank) for r in range(world_size)]
        seen = Counter(row for share in shares for spec in share for row in spec.rows if row)
        assert seen == Counter(row.windows for row in step.rows)


@given(data=st.data())
@settings(max_examples=40, deadline=None)
def test_all_ranks_run_the_same_shapes_in_the_same_micro_steps(data, corpora, plan_settings):
    index = data.draw(corpora)
    config = PlanConfig(**data.draw(plan_settings))
    world_size = data.draw(st.integers(1, 5))
    rows_per_rank = data.draw(st.integers(1, 4))
    for step in iterate_steps(index, config):
        length_of = {row.windows: row.length for row in step.rows}
        shares = [micro_batches(step, r, world_size, rows_per_rank) for r in range(world_size)]
        for specs in zip(*shares, strict=True):
            assert len({spec.seq_len for spec in specs}) == 1
            assert {len(spec.rows) for spec in specs} == {rows_per_rank}
            lengths = [length_of[row] for spec in specs for row in spec.rows if row]
            assert max(lengths) == specs[0].seq_len


def test_rows_of_one_length_are_computed_without_padding_to_another(simulated):
    index = simulated(2, 3000, 8, 60.0, 12.0)
    config = PlanConfig(max_seq_len=2048, global_batch=8, bucket_multiple=256)
    computed = own = 0
    for step in iterate_steps(index, config):
        if len(step.rows) == config.global_batch:
            computed += step_facts(step, 2, 2).padded_tokens
            own += sum(row.length for row in step.rows)
    assert own <= computed < 1.02 * own


def test_step_facts_count_zero_weight_rows_as_computed(simulated):
    index = simulated(0, 1, 1, 6.0, 4.0)
    (step,) = iterate_steps(index, PlanConfig(max_seq_len=512))
    facts = step_facts(step, 2, 3)
    assert (facts.num_rows, facts.padded_tokens) == (1, 6 * 512)
    assert facts.padding == 1 - facts.num_tokens / facts.padded_tokens
