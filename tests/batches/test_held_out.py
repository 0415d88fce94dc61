"""A mixture trains on nothing that one of its folders holds out."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.batches.facts import epoch_facts
from meloformer.batches.held_out import held_out_elsewhere
from meloformer.batches.mixture import Mixture
from meloformer.batches.plan import Cursor, PlanConfig, iterate_steps, plan_fingerprint
from tests.batches.conftest import SimulatedIndex, simulate

CONFIG = PlanConfig(max_seq_len=128, global_batch=3, group_shards=2)


def split_of(names: list[int], num_shards: int = 3) -> SimulatedIndex:
    """Pieces of those names; two splits may hold pieces of one name."""
    index = simulate(0, len(names), num_shards, 3.0, 4.0)
    object.__setattr__(index, "key", lambda piece: f"{names[piece]:08x}")
    return index


names = st.lists(st.integers(0, 60), min_size=1, max_size=40, unique=True)


@given(folders=st.lists(st.tuples(names, names, names), min_size=1, max_size=4))
@settings(max_examples=60, deadline=None)
def test_found_is_exactly_what_another_folder_holds_out(folders) -> None:
    splits = [tuple(map(split_of, folder)) for folder in folders]
    found = held_out_elsewhere([train for train, *_ in splits], [held for _, *held in splits])
    for number, (train, *_) in enumerate(folders):
        others = [held for other, (_, *held) in enumerate(folders) if other != number]
        elsewhere = {name for held in others for split in held for name in split}
        expected = [piece for piece, name in enumerate(train) if name in elsewhere]
        assert found[number].tolist() == expected


def taken(mixture: Mixture, epoch: int) -> Counter:
    pieces = {
        window.piece
        for step in iterate_steps(mixture, CONFIG, Cursor(epoch=epoch))
        for row in step.rows
        for window in row.windows
    }
    return Counter(mixture.key(piece) for piece in pieces)


@pytest.mark.parametrize("weight", [1, 2, 1.5])
def test_no_epoch_takes_what_is_left_out_and_each_takes_all_else_as_before(weight) -> None:
    parts = [split_of(list(range(30))), split_of(list(range(100, 120)))]
    out = [np.array([0, 7, 8, 29]), np.array([], dtype=np.int64)]
    mixture, whole = (Mixture(parts, [weight, 1], 0, left_out) for left_out in (out, ()))
    for epoch in range(3):
        expected = taken(whole, epoch)
        for piece in out[0].tolist():
            del expected[f"{piece:08x}"]
        assert taken(mixture, epoch) == expected


def test_a_mixture_counts_no_tokens_of_what_is_left_out() -> None:
    parts = [split_of(list(range(30))), split_of(list(range(100, 110)))]
    mixture = Mixture(parts, [1, 1], 0, [np.arange(20), np.array([], dtype=np.int64)])
    assert mixture.num_tokens == pytest.approx(epoch_facts(mixture, CONFIG).num_tokens, rel=0.2)


def test_a_plan_changes_with_what_is_left_out_and_with_nothing_else() -> None:
    parts = [split_of(list(range(30))), split_of(list(range(30)))]
    nothing = np.array([], dtype=np.int64)
    ways = [(), (nothing, nothing), (np.array([3]), nothing), (nothing, np.array([3]))]
    first, same, *others = [
        plan_fingerprint(Mixture(parts, [1, 1], 0, left_out), CONFIG) for left_out in ways
    ]
    assert first == same
    assert len({first, *others}) == 3
