"""What a user may ask for: what the grammar keeps, and what the prefix says of it."""

import numpy as np
import pytest
import torch

from meloformer.errors import GenerationError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.sampling import SamplingConfig
from meloformer.midi import grid
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode
from tests.layouts import tiny_config


def test_without_drums_all_others_may_play_and_the_prefix_says_nothing_of_it() -> None:
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(num_layers=2)).eval()
    controls = ControlConfig(bars=3, drums=False)
    assert np.array_equal(controls.prefix(), ControlConfig(bars=3).prefix())
    assert controls.describe() == "3 bars, no drums"
    pieces = generate(model, controls, SamplingConfig(top_p=1.0), num_samples=8, seed=1)
    playing = {index for ids in pieces for index in decode(ids).instrument.tolist()}
    assert grid.DRUMS not in playing and len(playing) > 1
    some = ControlConfig(bars=3, drums=False, instruments=("0",))
    assert some.instrument_indices == (1,) and some.describe() == "3 bars, #P0"


def test_drums_that_are_listed_and_forbidden_are_refused_in_one_line() -> None:
    said = "--instruments drums with --no_drums: allowed: one of them"
    with pytest.raises(GenerationError, match=said) as refusal:
        ControlConfig(instruments=("0", "drums"), drums=False)
    assert "\n" not in str(refusal.value)
