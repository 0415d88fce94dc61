"""A filled window through the cache, in runs of any length, against one parallel pass."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from meloformer.generation.labeller import Labeller
from meloformer.generation.part_writing import _Reader
from meloformer.model.attention import build_plan
from meloformer.model.masks import RULES, rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.filling import Hole, fill
from meloformer.tokens.hid import encode
from meloformer.tokens.labels import token_labels
from meloformer.tokens.vocabulary import KIND_OF, Kind
from tests.layouts import layout_of, tiny_config
from tests.tokens.pieces import random_piece
from tests.tokens.test_filling import windows_and_holes


@given(windows_and_holes(), st.data())
@settings(max_examples=60, deadline=None)
def test_labels_of_what_is_new_are_those_of_the_whole_filled_window(asked, data) -> None:
    window, hole = asked
    ids = fill(window, hole).astype(np.int64)
    num_first = data.draw(st.integers(1, len(ids)))
    labeller = Labeller(ids[None, :num_first])
    found = [labeller.prefix[:, 0], *(labeller.advance(id_1) for id_1 in ids[num_first:, None])]
    whole = token_labels(ids)
    expected = np.stack([whole.bar, whole.instrument, whole.index, whole.onset])
    assert np.array_equal(np.concatenate(found, axis=1), expected)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("is_hole_of_bars", [True, False])
def test_runs_through_the_cache_equal_a_parallel_pass(rule: str, is_hole_of_bars: bool) -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(rule=rule, num_layers=2, width=32, ffn_width=32)).eval().double()
    piece = random_piece(11, num_bars=7, num_notes=25)
    players = tuple(sorted(set(piece.instrument.tolist())))
    assert len(players) > 1
    hole = Hole(first=2, last=5, instruments=players[:1]) if is_hole_of_bars else None
    ids = fill(encode(piece), hole or Hole(instruments=players[-1:]))[:-1].astype(np.int64)
    layout = layout_of(ids)
    with torch.no_grad():
        expected_TV = model(torch.from_numpy(ids)[None], layout, build_plan(layout, rule_of(rule)))[
            0
        ]
    rng = np.random.default_rng(0)
    for longest in (2, 400):
        reader, start = _Reader(model), 0
        while start < len(ids):
            stop = start + int(rng.integers(1, longest + 1))
            found_V = reader.read(ids[start:stop].tolist())
            start = min(stop, len(ids))
            assert torch.allclose(found_V, expected_TV[start - 1], atol=1e-11, rtol=0), start
    assert (KIND_OF[ids] == Kind.BAR).sum() == 7
