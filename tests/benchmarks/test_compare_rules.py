"""Rules compared on real shards: the same rows, the same start, every model learns."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from meloformer.batches.batch import Batch
from meloformer.benchmarks.compare_rules import CompareRulesConfig, Race, _Trainee
from meloformer.benchmarks.rule_candidates import DENSE_TWIN, GROUPINGS, find_candidates
from meloformer.benchmarks.rule_curves import Comparison
from meloformer.errors import ConfigError
from meloformer.model.masks import RULES, HeadGroup

SHORT = CompareRulesConfig(
    minutes=1e-6,
    seeds=1,
    max_seq_len=256,
    batch_size=1,
    warmup_steps=2,
    learning_rate=3e-3,
    slice_steps=3,
    validate_every=3,
    validation_rows=1,
    device="cpu",
)


def a_race(shards: Path, *rules: str, **changes) -> Race:
    return Race(replace(SHORT, data=str(shards), rules=rules, **changes))


def last(race: Race) -> Comparison:
    *_, comparison = race.run()
    return comparison


def test_names_commas_groupings_and_files_name_candidates(tmp_path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(json.dumps([{"same_instrument": True, "bar_distances": [0]}]))
    found = find_candidates(["halves,near", str(path), DENSE_TWIN])
    assert [c.name for c in found] == ["halves", "near", "mine", DENSE_TWIN]
    assert found[1].rule == GROUPINGS["near"]
    assert found[2].rule == (HeadGroup(True, (0,)),)
    assert [c.summaries for c in found] == [True, True, True, False]
    assert {c.name for c in find_candidates(CompareRulesConfig().rules)} >= {*RULES, DENSE_TWIN}
    for wrong, message in (("sparse", "here also: near"), ("hid,hid", "hid twice"), (",", "none")):
        with pytest.raises(ConfigError, match=message):
            find_candidates([wrong])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"minutes": 0}, "--minutes 0: allowed"),
        ({"seeds": 0}, "--seeds 0: allowed"),
        ({"validate_every": 7}, "--validate_every 7: allowed: multiples of --slice_steps 3"),
        ({"learning_rate": -1}, "--learning_rate -1"),
    ],
)
def test_flags_that_make_no_comparison_are_refused(changes, message) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(SHORT, **changes)


def test_one_rule_stored_in_two_orders_learns_the_same(chorale_shards, tmp_path) -> None:
    """Rows, first weights, turns and validation are alike, or the two would drift apart."""
    path = tmp_path / "near_by_instrument.json"
    (near,) = GROUPINGS["near"]
    group = {"same_instrument": False, "bar_distances": list(near.bar_distances or ())}
    path.write_text(json.dumps([{**group, "order": "instrument"}]))
    race = a_race(chorale_shards, "near", str(path), seeds=2)
    found = last(race)
    assert found.num_steps == 3 and len(found.targets) == 2
    one, other = found.curves.values()
    for a, b in zip(one, other, strict=True):
        assert a.steps == b.steps == (0, 3)
        assert a.nats_per_note == pytest.approx(b.nats_per_note, abs=1e-3)
        assert 0 == a.seconds[0] < a.seconds[1]
        assert a.nats_per_note[1] < a.nats_per_note[0] - 0.1
    assert abs(one[0].nats_per_note[1] - one[1].nats_per_note[1]) > 1e-3, "seeds differ"


@pytest.mark.slow  # halves and the dense twin are among the quick ones, in the test of the recipe
def test_all_rules_and_the_dense_twin_train_with_heads_that_serve_all(chorale_shards) -> None:
    race = a_race(chorale_shards, "museformer", "split_1_2_far_1", DENSE_TWIN)
    assert {(m.num_heads, m.num_kv_heads) for m in race.models.values()} == {(4, 4)}
    for of_candidate in last(race).curves.values():
        assert of_candidate[0].nats_per_note[1] < of_candidate[0].nats_per_note[0] - 0.1


def test_the_time_ends_a_comparison_and_every_validation_is_reported(chorale_shards) -> None:
    race = a_race(chorale_shards, "near", minutes=0.02, validate_every=6)
    steps = [comparison.num_steps for comparison in race.run()]
    assert steps == sorted(set(steps)) and all(step % 6 == 0 for step in steps[:-1])


def test_a_trainee_of_a_race_in_bf16_computes_with_copies_of_what_is_optimized(
    chorale_shards,
) -> None:
    race = a_race(chorale_shards, "near")
    race.dtype = torch.bfloat16
    trainee = _Trainee(race, race.candidates[0], 0, None)
    batches: list[Batch] = next(race._streams[0])
    before = copy.deepcopy(trainee.learner.master)
    trainee.train(batches * 2, step=0)
    masters, weights = (
        list(module.parameters()) for module in (trainee.learner.master, trainee.learner.model)
    )
    assert not torch.equal(next(before.parameters()), masters[0])
    for weight, master in zip(weights, masters, strict=True):
        assert (weight.dtype, master.dtype) == (torch.bfloat16, torch.float32)
        assert torch.equal(weight, master.to(torch.bfloat16))
        assert weight.grad is None and master.grad is None
