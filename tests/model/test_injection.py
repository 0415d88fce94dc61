"""Open and closed summaries, proven by perturbation: who feels what, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meloformer.errors import ConfigError
from meloformer.model import attention
from meloformer.model.injection import (
    INJECTION_LAYER,
    Injection,
    NoisedOwn,
    Strategy,
    _means_of_pieces,
    open_layout,
)
from meloformer.model.masks import RULES, Layout, rule_of
from meloformer.model.museformer import MuseFormer
from tests.layouts import as_torch, random_layout, tiny_config

LENGTH, SLOTS = 160, 128
STRATEGIES: tuple[Strategy, ...] = ("replace", "blend", "adapter")
# The input, the first layer, and the one that bases are trained with.
LAYERS = (0, 1, INJECTION_LAYER)


class Gate(nn.Module):
    """An adapter that mixes both in a way that no strategy of ours does."""

    def forward(self, own: Tensor, injected: Tensor) -> Tensor:
        return own * torch.sigmoid(injected) + 0.3 * injected


class Piece:
    """Some rows of packed pieces, a model, and something to inject."""

    def __init__(
        self,
        rule: str,
        strategy: Strategy = "blend",
        seed: int = 0,
        layer: int = INJECTION_LAYER,
        **changes: Any,
    ):
        torch.manual_seed(seed)
        shape = {"num_layers": 5, **changes}
        self.model = MuseFormer(tiny_config(rule=rule, **shape)).double().eval()
        for parameter in self.model.parameters():  # at their start, residuals say next to nothing
            parameter.data += 0.05 * torch.randn_like(parameter)
        self.layout = as_torch(random_layout(seed + 1, rows=2, length=LENGTH, slots=SLOTS))
        self.ids = torch.randint(self.model.config.vocab_size, (2, LENGTH))
        self.summaries = torch.randn(2, SLOTS, self.model.config.width).double()
        self.mask = self.layout.piece_BS >= 0
        self.strategy: Strategy = strategy
        self.layer = layer

    def injection(self, summaries: Tensor | None = None) -> Injection:
        return Injection(
            summaries_BSD=self.summaries if summaries is None else summaries,
            mask_BS=self.mask,
            strategy=self.strategy,
            adapter=Gate() if self.strategy == "adapter" else None,
            layer=self.layer,
        )

    @torch.no_grad()
    def logits(self, ids: Tensor | None = None, summaries: Tensor | None = None) -> Tensor:
        injection = self.injection(summaries)
        layout = injection.layout(self.layout)
        plan = attention.build_plan(layout, rule_of(self.model.config.rule))
        return self.model(self.ids if ids is None else ids, layout, plan, injection)


def moved(one: Tensor, other: Tensor) -> Tensor:
    """(B, T) bool: where logits differ."""
    return (one - other).abs().amax(-1) > 1e-9


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_token_moves_no_earlier_logit_and_no_other_piece(rule: str, strategy: Strategy) -> None:
    check_no_leak(Piece(rule, strategy))


def test_a_token_moves_no_earlier_logit_where_summaries_enter_at_the_input() -> None:
    check_no_leak(Piece("halves", "blend", layer=0, num_layers=2))


@pytest.mark.slow
@pytest.mark.parametrize("layer", LAYERS[:-1])
@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rule", RULES)
def test_a_token_moves_no_earlier_logit_wherever_summaries_enter(
    rule: str, strategy: Strategy, layer: int
) -> None:
    check_no_leak(Piece(rule, strategy, layer=layer))


def check_no_leak(piece: Piece) -> None:
    """Change single tokens: what stands before them, and other pieces, must not feel it."""
    before, layout = piece.logits(), piece.layout
    time = torch.arange(LENGTH)
    rng = np.random.default_rng(3)
    inside = np.flatnonzero(layout.piece_BT[0].numpy() >= 0)
    for place in {0, 1, *rng.choice(inside, 5, replace=False).tolist()}:
        ids = piece.ids.clone()
        ids[0, place] = (ids[0, place] + 1) % piece.model.config.vocab_size
        felt = moved(before, piece.logits(ids))
        assert felt[0, place] and not felt[1].any()
        allowed = (time >= place) & (layout.piece_BT[0] == layout.piece_BT[0, place])
        assert not felt[0][~allowed].any(), place


@pytest.mark.parametrize(
    ("strategy", "layer"),
    [
        *((strategy, INJECTION_LAYER) for strategy in STRATEGIES),
        *(
            pytest.param(strategy, layer, marks=pytest.mark.slow)
            for strategy in STRATEGIES
            for layer in LAYERS[:-1]
        ),
    ],
)
def test_an_injected_summary_moves_its_piece_through_the_prefix_and_no_other(
    strategy: Strategy, layer: int
) -> None:
    piece = Piece("halves", strategy, layer=layer)
    before, layout = piece.logits(), piece.layout
    for slot in np.flatnonzero(layout.piece_BS[0].numpy() >= 0)[::3].tolist():
        summaries = piece.summaries.clone()
        summaries[0, slot] += 1
        felt = moved(before, piece.logits(summaries=summaries))
        assert torch.equal(felt[0], layout.piece_BT[0] == layout.piece_BS[0, slot]), slot
        assert not felt[1].any()


def test_tokens_read_the_open_summary_of_their_bar_and_the_prefix_reads_all() -> None:
    layout = as_torch(random_layout(5, rows=2, length=LENGTH, slots=SLOTS))
    opened = open_layout(layout, layout.piece_BS >= 0)
    plan = attention.build_plan(opened, RULES["full"]).opened
    assert plan is not None and plan.summarize is not None
    reads = plan.update[0].mask[:, 0, :, SLOTS : 2 * SLOTS].numpy()
    own = plan.summarize.mask[:, 0].numpy()
    layout = layout.map(Tensor.numpy)
    for row, time, slot in np.ndindex(2, LENGTH, SLOTS):
        of_one = 0 <= layout.piece_BT[row, time] == layout.piece_BS[row, slot]
        bar = layout.bar_BT[row, time]
        assert reads[row, time, slot] == (of_one and bar in (-1, layout.bar_BS[row, slot]))
    for row, one, other in np.ndindex(2, SLOTS, SLOTS):
        of_one = 0 <= layout.piece_BS[row, one] == layout.piece_BS[row, other]
        earlier = layout.bar_BS[row, other] <= layout.bar_BS[row, one]
        assert own[row, one, other] == ((of_one and earlier) or one == other)


@pytest.mark.parametrize("num_layers", [1, 2])
def test_what_enters_at_the_input_is_read_by_the_first_layer_already(num_layers: int) -> None:
    """Own bar and prefix read an open summary in one layer; a closed one is read by later bars."""
    felt = {}
    for layer in range(num_layers):
        piece = Piece("halves", "replace", layer=layer, num_layers=num_layers)
        before, labels = piece.logits(), piece.layout
        slot = int(np.flatnonzero(labels.bar_BS[0].numpy() == 1)[0])
        summaries = piece.summaries.clone()
        summaries[0, slot] += 1
        felt[layer] = moved(before, piece.logits(summaries=summaries))[0]
        is_piece = labels.piece_BT[0] == labels.piece_BS[0, slot]
        own_bar, prefix = (is_piece & (labels.bar_BT[0] == bar) for bar in (1, -1))
        assert own_bar.any() and felt[layer][own_bar | prefix].all(), layer
    # Bar 0 reads no summary of bar 1 but through the prefix, and that takes a second layer.
    bar_0 = is_piece & (piece.layout.bar_BT[0] == 0)
    assert bar_0.any()
    assert [bool(felt[layer][bar_0].any()) for layer in felt] == [True, False][-num_layers:]


@pytest.mark.parametrize("layer", (0, INJECTION_LAYER))
def test_bars_without_an_injected_summary_are_written_as_without_injection(layer: int) -> None:
    piece = Piece("halves", layer=layer)
    piece.mask = torch.zeros_like(piece.mask)
    piece.mask[1] = piece.layout.piece_BS[1] >= 0
    found = piece.logits()
    plan = attention.build_plan(piece.layout, RULES["halves"])
    with torch.no_grad():
        plain = piece.model(piece.ids, piece.layout, plan)
    assert not moved(found, plain)[0].any()
    assert moved(found, plain)[1][piece.layout.piece_BT[1] >= 0].all()


def test_replacing_is_blending_with_all_the_weight() -> None:
    piece = Piece("halves", "replace")
    expected = piece.logits()
    blend = Injection(summaries_BSD=piece.summaries, mask_BS=piece.mask, alpha=1.0)
    layout = blend.layout(piece.layout)
    plan = attention.build_plan(layout, RULES["halves"])
    with torch.no_grad():
        assert torch.equal(piece.model(piece.ids, layout, plan, blend), expected)


@pytest.mark.parametrize("layer", (0, INJECTION_LAYER))
def test_summaries_after_the_layer_of_the_injection_are_what_the_layers_above_read(
    layer: int,
) -> None:
    """Those of the model itself, put in their own place, leave the closed stream as it was."""
    piece = Piece("halves", "replace", layer=layer)
    plan = attention.build_plan(piece.layout, RULES["halves"])
    with torch.no_grad():
        own = piece.model.summary_start.expand_as(piece.summaries)
        if layer:
            own = piece.model.summaries(piece.ids, piece.layout, plan, layer)
        one = piece.logits(summaries=own)
        layout = open_layout(piece.layout, piece.mask)
        opened = attention.build_plan(layout, RULES["halves"])
        other = piece.model(piece.ids, layout, opened, _Quiet(own, layer))
        noised = piece.model(piece.ids, layout, opened, NoisedOwn([0, None]))
    assert torch.allclose(one, other, atol=1e-10)
    assert moved(one, noised).any()


class _Quiet:
    """The closed summaries left alone, the open ones those given."""

    def __init__(self, own: Tensor, layer: int) -> None:
        self.own, self.layer = own, layer

    def streams(self, s_BSD: Tensor, open_BS: Tensor) -> tuple[Tensor, Tensor]:
        return s_BSD, torch.where((open_BS >= 0)[..., None], self.own, 0)


def test_the_noise_of_a_row_depends_on_its_seed_alone() -> None:
    own = torch.randn(3, SLOTS, 8)
    piece = torch.arange(SLOTS).expand(3, -1) // 40
    piece[1, 50:] = -1
    closed, together = NoisedOwn([5, 6, 7]).streams(own, piece)
    assert torch.equal(closed, own)
    for row, seed in enumerate((5, 6, 7)):
        part = slice(row, row + 1)
        _, alone = NoisedOwn([seed]).streams(own[part], piece[part])
        assert torch.equal(together[part], alone)
    assert not together[1, 50:].any()
    _, other = NoisedOwn([5, 6, 8]).streams(own, piece)
    assert torch.equal(other[:2], together[:2]) and not torch.equal(other[2], together[2])


def test_the_noise_is_no_louder_than_the_summaries_vary() -> None:
    own = torch.randn(64, SLOTS, 4) * torch.tensor([0.1, 1.0, 5.0, 0.0])
    # Where each bar is a piece of its own, a mean over its piece is the bar itself.
    _, noised = NoisedOwn(range(64)).streams(own, torch.arange(SLOTS).expand(64, -1))
    assert (noised - own)[..., 3].abs().max() < 0.01, "what never varies stays as it is"
    ratio = ((noised - own).std(1) / own.std(1))[:, :3]
    assert ratio.max() < 1.3 and ratio.min() < 0.01
    assert 0.2 < ratio.mean() < 0.45


def test_in_a_third_of_the_rows_bars_are_their_pieces_mean_in_a_third_something_between() -> None:
    own = torch.randn(300, SLOTS, 4) + 10 * (torch.arange(SLOTS) % 2)[:, None]
    one_piece = torch.zeros(300, SLOTS, dtype=torch.long)
    _, noised = NoisedOwn(range(300)).streams(own, one_piece)
    # What is left of the way from even bars to odd ones, which noise moves by less than 2.
    left = (noised[:, 1::2] - noised[:, ::2]).mean((1, 2)) / 10
    assert left.min() > -0.2 and left.max() < 1.2
    shares = [(left < 0.2).double().mean(), (left > 0.8).double().mean()]
    assert all(0.3 < share < 0.5 for share in shares), shares


def test_a_mean_is_of_the_bars_of_its_piece_and_of_no_other() -> None:
    layout = as_torch(random_layout(4, rows=3, length=LENGTH, slots=SLOTS))
    own = torch.randn(3, SLOTS, 5, dtype=torch.float64)
    found = _means_of_pieces(own, layout.piece_BS)
    for row, slot in np.ndindex(3, SLOTS):
        piece = layout.piece_BS[row, slot]
        mine = own[row][layout.piece_BS[row] == piece].mean(0) if piece >= 0 else torch.zeros(5)
        assert torch.allclose(found[row, slot], mine.double(), atol=1e-12)


@pytest.mark.parametrize("num_bars", [0, 1, 2, SLOTS])
def test_summaries_learn_from_what_is_read_in_them_and_not_from_noise_they_could_outgrow(
    num_bars: int,
) -> None:
    own = torch.randn(1, SLOTS, 8, requires_grad=True)
    is_open = (torch.arange(SLOTS) < num_bars)[None, :, None]
    piece = torch.where(is_open[..., 0], 0, -1)
    _, noised = NoisedOwn([3]).streams(own, piece)
    noised.square().sum().backward()
    assert own.grad is not None and own.grad.isfinite().all()
    has_gradient = own.grad.abs().sum(-1)[0] > 0
    assert torch.equal(has_gradient, is_open[0, :, 0])
    # Twice as large is twice as noisy: nothing is gained by growing.
    if num_bars > 1:
        _, doubled = NoisedOwn([3]).streams(2 * own, piece)
        assert torch.allclose(doubled, 2 * noised, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, "--alpha 1.5: allowed 0 to 1"),
        ({"strategy": "adapter"}, "--strategy adapter with no adapter"),
        ({"adapter": Gate()}, "--strategy blend with an adapter"),
        ({"layer": -1}, "after layer -1: allowed: 0, the input, or a layer from 1"),
        ({"mask_BS": torch.ones(2, 7, dtype=torch.bool)}, r"shape \(2, 8, 4\) with a mask"),
    ],
)
def test_what_cannot_be_injected_is_refused(changes: dict, message: str) -> None:
    values = {"summaries_BSD": torch.zeros(2, 8, 4), "mask_BS": torch.ones(2, 8, dtype=torch.bool)}
    with pytest.raises(ConfigError, match=message):
        Injection(**values | changes)


def test_summaries_of_another_width_are_refused() -> None:
    injection = Injection(
        summaries_BSD=torch.zeros(1, 8, 4), mask_BS=torch.ones(1, 8, dtype=torch.bool)
    )
    injection.check_width(4)
    with pytest.raises(ConfigError, match="4 wide, the model is 128 wide"):
        injection.check_width(128)


@pytest.mark.parametrize("layer", (0, INJECTION_LAYER))
def test_gradients_reach_the_layers_above_through_open_summaries_and_not_below(layer: int) -> None:
    piece = Piece("halves", layer=layer)
    layout: Layout = open_layout(piece.layout, piece.mask)
    plan = attention.build_plan(layout, RULES["halves"])
    injected = piece.summaries.requires_grad_()
    injection = Injection(summaries_BSD=injected, mask_BS=piece.mask, layer=layer)
    piece.model(piece.ids, layout, plan, injection).square().sum().backward()
    assert injected.grad is not None
    is_read = piece.layout.piece_BS >= 0
    assert (injected.grad.abs().amax(-1) > 0).equal(is_read)
