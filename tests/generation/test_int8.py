"""Weights of 8 bits: what is rounded, and by how much."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from meloformer.errors import ConfigError
from meloformer.generation.controls import ControlConfig
from meloformer.generation.generate import generate
from meloformer.generation.int8 import Int8Linear, use_int8_weights
from meloformer.generation.sampling import SamplingConfig
from meloformer.model import attention
from meloformer.model.masks import rule_of
from meloformer.model.museformer import MuseFormer
from meloformer.tokens.hid import decode
from tests.layouts import layout_of, tiny_config


def a_model() -> MuseFormer:
    torch.manual_seed(0)
    return MuseFormer(tiny_config(num_layers=2)).eval()


def test_a_product_is_off_by_no_more_than_its_roundings() -> None:
    torch.manual_seed(0)
    linear = nn.Linear(64, 48, bias=False)
    linear.weight.data[3] = 0
    x = torch.randn(2, 5, 64)
    found, exact = Int8Linear(linear)(x), linear(x)
    # Half a step of every weight, and one of everything that comes in, in 7 bits.
    step_O = linear.weight.detach().abs().amax(dim=1) / 127
    step_in = (x.max() - x.min()) / 127
    most = x.abs().sum(-1, keepdim=True) * step_O / 2
    most = most + step_in * (linear.weight.detach().abs().sum(dim=1) + 64 * step_O / 2)
    assert found.shape == exact.shape
    assert ((found - exact).abs() <= most + 1e-5).all()
    assert (found[..., 3] == 0).all() and (found - exact).abs().max() > 0


def test_the_layers_alone_are_rounded_and_the_pieces_decode() -> None:
    model = a_model()
    rounded = copy.deepcopy(model)
    use_int8_weights(rounded)
    assert not any(type(module) is nn.Linear for module in rounded.layers.modules())
    assert torch.equal(rounded.token_embedding.weight, model.token_embedding.weight)
    controls = ControlConfig(bars=3, instruments=("0",))
    pieces = generate(rounded, controls, SamplingConfig(), num_samples=2)
    assert all(decode(ids).num_bars == 3 for ids in pieces)
    ids = pieces[0].astype(np.int64)
    layout = layout_of(ids)
    plan = attention.build_plan(layout, rule_of(model.config.rule))
    with torch.no_grad():
        logits, near = (
            one(torch.from_numpy(ids)[None], layout, plan).log_softmax(-1)
            for one in (model, rounded)
        )
    assert 0 < (logits - near).abs().max() < 0.1


def test_what_has_no_products_of_8_bits_is_refused() -> None:
    with pytest.raises(ConfigError, match="found a model in float64 on cpu; allowed: --device cpu"):
        use_int8_weights(a_model().double())
