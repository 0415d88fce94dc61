"""Counts by formula against what torch counts on the meta device."""

from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from meloformer.model import attention
from meloformer.model.config import SIZES
from meloformer.model.counts import StepPairs, forward_flops, num_parameters, training_flops
from meloformer.model.injection import Injection
from meloformer.model.masks import RULES, Layout
from meloformer.model.museformer import MuseFormer
from tests.layouts import tiny_config


def meta_layout(rows: int, length: int, slots: int) -> Layout:
    def empty(size: int) -> torch.Tensor:
        return torch.empty((rows, size), dtype=torch.int32, device="meta")

    return Layout(
        piece_BT=empty(length),
        bar_BT=empty(length),
        instrument_BT=empty(length),
        onset_BT=empty(length),
        index_BT=empty(length),
        piece_BS=empty(slots),
        bar_BS=empty(slots),
    )


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("summaries", [True, False])
def test_parameters_are_counted_exactly_by_formula(size, summaries) -> None:
    config = tiny_config(**vars(SIZES[size]), rule="full", summaries=summaries)
    with torch.device("meta"):
        model = MuseFormer(config)
    assert sum(parameter.numel() for parameter in model.parameters()) == num_parameters(config)


@pytest.mark.parametrize(
    ("size", "millions"), [("tiny", 1.2), ("small", 30.6), ("base", 100), ("large", 454)]
)
def test_the_sizes_are_those_that_are_promised(size, millions) -> None:
    count = num_parameters(tiny_config(**vars(SIZES[size]))) / 1e6
    assert count == pytest.approx(millions, rel=0.03)


@pytest.mark.parametrize("size", SIZES)
def test_operations_of_a_forward_pass_are_those_that_torch_counts(size) -> None:
    """The dense backend computes every pair, so the formula is given every pair."""
    rows, length, slots = 2, 256, 128
    config = tiny_config(**vars(SIZES[size]), rule="full")
    with torch.device("meta"):
        model = MuseFormer(config)
    layout = meta_layout(rows, length, slots)
    ids = torch.empty((rows, length), dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids, layout, attention.build_plan(layout, RULES["full"]))
    keys = slots + length
    pairs = StepPairs(update=rows * length * keys, summarize=rows * slots * keys)
    expected = forward_flops(config, rows * length, rows * slots, pairs)
    assert counter.get_total_flops() == expected
    assert training_flops(config, rows * length, rows * slots, pairs) == 3 * expected


def test_operations_without_summaries_are_those_that_torch_counts() -> None:
    rows, length, slots = 2, 256, 128
    config = tiny_config(rule="full", summaries=False)
    with torch.device("meta"):
        model = MuseFormer(config)
    layout = meta_layout(rows, length, slots)
    plan = attention.build_plan(layout.without_summaries(), RULES["full"])
    ids = torch.empty((rows, length), dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids, layout, plan)
    pairs = StepPairs(update=rows * length**2, summarize=rows * slots * (slots + length))
    assert counter.get_total_flops() == forward_flops(config, rows * length, rows * slots, pairs)


def test_operations_with_open_summaries_are_those_that_torch_counts() -> None:
    rows, length, slots = 2, 256, 128
    config = tiny_config(rule="full", num_layers=5)
    with torch.device("meta"):
        model = MuseFormer(config)
        injection = Injection(
            summaries_BSD=torch.empty(rows, slots, config.width),
            mask_BS=torch.empty(rows, slots, dtype=torch.bool),
        )
    layout = injection.layout(meta_layout(rows, length, slots))
    plan = attention.build_plan(layout, RULES["full"])
    ids = torch.empty((rows, length), dtype=torch.int64, device="meta")
    with FlopCounterMode(display=False) as counter:
        model(ids, layout, plan, injection)
    num_open, keys = rows * slots, slots + length
    pairs = StepPairs(
        update=rows * length * keys, summarize=num_open * keys, opened=num_open * (length + slots)
    )
    expected = forward_flops(config, rows * length, rows * slots, pairs, num_open)
    assert counter.get_total_flops() == expected
    # Three layers are below: nothing is left that would read one.
    below = replace(config, num_layers=3)
    pairs = replace(pairs, opened=0)
    assert forward_flops(below, 1, 1, pairs, num_open) == forward_flops(below, 1, 1, pairs)
