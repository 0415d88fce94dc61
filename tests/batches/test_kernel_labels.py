"""The kernel's mask function on the whole grid of pairs; the rules on labels judge it."""

import dataclasses

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.fx.experimental.proxy_tensor import make_fx

from meloformer.batches.block_plans import build_blocks
from meloformer.batches.kernel_labels import Distances, split_distances
from meloformer.errors import ConfigError
from meloformer.model import attention
from meloformer.model.masks import BLOCK_SIZES, RULES, HeadGroup, Layout, Rule
from tests.layouts import as_torch, random_layout, with_open

# Distances that take every way of testing them, alone and together.
OTHER_DISTANCES = [
    (),
    (0,),
    (0, 2),
    (0, 1, 5, 7),
    (3,),
    (1, 2, 5),
    (0, 31),
    (0, 32),
    (0, 31, 32, 33),
    (0, 1, 2, 32, 64),
    (2, 16, 32),
]
ALL_RULES: dict[str, Rule] = {
    **RULES,
    **{str(d): (HeadGroup(False, d), HeadGroup(True, d, "instrument")) for d in OTHER_DISTANCES},
    "swapped": (HeadGroup(True, (0, 1, 2, 4), share=3), HeadGroup(False, None, "instrument")),
}


def check(layout: Layout, rule: Rule, block_size: int = BLOCK_SIZES[-1]) -> None:
    """Compare all calls of a plan, pair by pair, with the rule on labels."""
    tensors = as_torch(layout)
    dense = attention.build_plan(tensors, rule)
    flex = attention.build_plan(
        tensors, rule, "flex", as_torch(build_blocks(layout, rule, block_size))
    )
    calls = [*zip(flex.update, dense.update, strict=True)]
    if dense.opened is not None:
        calls += zip(flex.opened.update, dense.opened.update, strict=True)
        assert torch.equal(flex.opened.summarize.mask, dense.opened.summarize.mask)
    if dense.summarize is not None:
        calls.append((flex.summarize, dense.summarize))
    for found, expected in calls:
        row, query, key = (torch.arange(size) for size in np.delete(expected.mask.shape, 1))
        pairs = found.mask.mask_mod(
            row[:, None, None], torch.tensor(0), query[None, :, None], key[None, None]
        )
        assert pairs.dtype == torch.bool
        assert torch.equal(pairs, expected.mask[:, 0])
        assert pairs.any(-1).all(), "a query without a key"


@pytest.mark.parametrize("rule", ALL_RULES.values(), ids=ALL_RULES)
def test_the_kernel_reads_exactly_the_pairs_of_the_rule(rule) -> None:
    for seed in range(2):
        layout = random_layout(seed=seed, rows=3, length=300)
        check(layout, rule)
        check(with_open(layout, seed), rule)


@st.composite
def layouts(draw) -> Layout:
    """Rows of pieces with and without prefix, empty bars, one-token rows, all padding."""
    length, slots, num_rows = draw(st.integers(1, 150)), 64, 2
    rows = []
    for _ in range(num_rows):
        piece, bar, instrument, index, slot_piece, slot_bar = [], [], [], [], [], []
        for number in range(draw(st.integers(0, 3))):
            for position in range(draw(st.integers(0, 4))):
                piece.append(number), bar.append(-1), instrument.append(-1), index.append(position)
            for measure in range(draw(st.integers(1, 40))):
                players = draw(st.lists(st.integers(1, 5), max_size=3))
                for position, player in enumerate([0, *sorted(players)]):
                    piece.append(number), bar.append(measure)
                    instrument.append(player), index.append(position)
                slot_piece.append(number), slot_bar.append(measure)
        # A row ends where it is full, in the middle of a piece or of a bar.
        kept = [np.array(field[:length], dtype=np.int32) for field in (piece, bar, instrument)]
        bars = {(p, b) for p, b in zip(kept[0], kept[1], strict=True) if b >= 0}
        slot = [(p, b) for p, b in zip(slot_piece, slot_bar, strict=True) if (p, b) in bars][:slots]
        fill = length - len(kept[0])
        rows.append(
            [np.pad(field, (0, fill), constant_values=-1) for field in kept]
            + [np.pad(np.array(index[:length], dtype=np.int32), (0, fill))]
            + [
                np.pad(
                    np.array([pair[part] for pair in slot], dtype=np.int32),
                    (0, slots - len(slot)),
                    constant_values=-1 if part == 0 else 0,
                )
                for part in (0, 1)
            ]
        )
    piece, bar, instrument, index, slot_piece, slot_bar = map(np.stack, zip(*rows, strict=True))
    return Layout(
        piece_BT=piece,
        bar_BT=bar,
        instrument_BT=instrument,
        onset_BT=np.zeros_like(piece),
        index_BT=index,
        piece_BS=slot_piece,
        bar_BS=slot_bar,
    )


distance_sets = st.none() | st.sets(st.integers(0, 40), max_size=6).map(lambda s: tuple(sorted(s)))
groups = st.builds(
    HeadGroup, st.booleans(), distance_sets, st.sampled_from(["bar", "instrument"]), st.just(1)
)


@settings(max_examples=25, deadline=None)
@given(layouts(), groups, st.integers(0, 100), st.sampled_from([0.3, 1.0]))
def test_any_group_on_any_row_reads_exactly_the_pairs_of_the_rule(
    layout, group, seed, share
) -> None:
    check(layout, (group,), block_size=64)
    check(with_open(layout, seed, share), (group,), block_size=64)
    check(layout.without_summaries(), (group,))


def test_a_row_of_padding_and_a_row_of_one_token_read_themselves() -> None:
    layout = with_open(random_layout(seed=0, rows=2, length=128), seed=0)
    empty = {
        field.name: np.full_like(
            getattr(layout, field.name), -1 if field.name in _WITHOUT_A_PIECE else 0
        )
        for field in dataclasses.fields(layout)
    }
    layout = Layout(**empty)
    layout.piece_BT[1, 0] = 0
    for rule in RULES.values():
        check(layout, rule)


_WITHOUT_A_PIECE = ("piece_BT", "bar_BT", "instrument_BT", "piece_BS", "open_BS")


@pytest.mark.parametrize(
    ("distances", "expected"),
    [
        ((0, 1, 2, 4), Distances(last=2, bits=(), codes=(4,))),
        ((0, 1, 2, 4, 8, 32), Distances(last=32, bits=(0, 1, 2, 4, 8, 32), codes=())),
        ((0, 40, 50), Distances(last=0, bits=(), codes=(40, 50))),
        ((4, 8, 12), Distances(last=-1, bits=(), codes=(4, 8, 12))),
    ],
)
def test_distances_are_tested_in_the_cheapest_way_that_holds(distances, expected) -> None:
    assert split_distances(distances) == expected


def loads_and_operations(mask_mod) -> tuple[int, int]:
    """What torch traces of a mask function: look-ups of labels, and everything else."""
    index = [torch.zeros(1, dtype=torch.int32) for _ in range(4)]
    graph = make_fx(mask_mod, tracing_mode="real")(*index).graph
    calls = [node.target for node in graph.nodes if node.op == "call_function"]
    loads = sum(target == torch.ops.aten.index.Tensor for target in calls)
    return loads, len(calls) - loads


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("full", [(2, 3)]),
        ("museformer", [(4, 6)]),
        ("hid", [(7, 7)]),
        ("halves", [(5, 5), (4, 5)]),
    ],
)
def test_a_pair_costs_the_operations_that_the_mask_function_states(rule, expected) -> None:
    layout = random_layout(seed=1)
    blocks = as_torch(build_blocks(layout, RULES[rule]))
    plan = attention.build_plan(as_torch(layout), RULES[rule], "flex", blocks)
    assert loads_and_operations(plan.summarize.mask.mask_mod) == (2, 3)
    assert [loads_and_operations(call.mask.mask_mod) for call in plan.update] == expected


@pytest.mark.parametrize(
    ("rule", "expected"),
    [
        ("full", [(4, 5)]),
        ("museformer", [(6, 8)]),
        ("hid", [(7, 7)]),
        ("halves", [(7, 7), (4, 5)]),
    ],
)
def test_open_summaries_cost_one_code_where_no_code_numbers_bars_yet(rule, expected) -> None:
    layout = with_open(random_layout(seed=1), seed=1)
    blocks = as_torch(build_blocks(layout, RULES[rule]))
    plan = attention.build_plan(as_torch(layout), RULES[rule], "flex", blocks)
    found = [loads_and_operations(call.mask.mask_mod) for call in plan.opened.update]
    assert found == expected


def test_blocks_of_a_layout_without_open_summaries_are_refused_for_one_with_them() -> None:
    layout = random_layout(seed=1)
    blocks = as_torch(build_blocks(layout, RULES["halves"]))
    opened = as_torch(with_open(layout, seed=1))
    with pytest.raises(ConfigError, match="block lists of the layout with its open summaries"):
        attention.build_plan(opened, RULES["halves"], "flex", blocks)
