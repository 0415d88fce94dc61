"""Open and closed summaries, proven by perturbation: who feels what, in float64."""

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from meloformer.errors import ConfigError
from meloformer.model import attention
from meloformer.model.injection import Injection, NoisedOwn, Strategy, open_layout
from meloformer.model.masks import RULES, Layout, rule_of
from meloformer.model.museformer import MuseFormer
from tests.layouts import as_torch, random_layout, tiny_config

LENGTH, SLOTS = 160, 128
STRATEGIES: tuple[Strategy, ...] = ("replace", "blend", "adapter")


class Gate(nn.Module):
    """An adapter that mixes both in a way that no strategy of ours does."""

    def forward(self, own: Tensor, injected: Tensor) -> Tensor:
        return own * torch.sigmoid(injected) + 0.3 * injected


class Piece:
    """Some rows of packed pieces, a model, and something to inject."""

    def __init__(self, rule: str, strategy: Strategy = "blend", seed: int = 0, **changes: Any):
        torch.manual_seed(seed)
        self.model = MuseFormer(tiny_config(rule=rule, num_layers=5, **changes)).double().eval()
        for parameter in self.model.parameters():  # at their start, residuals say next to nothing
            parameter.data += 0.05 * torch.randn_like(parameter)
        self.layout = as_torch(random_layout(seed + 1, rows=2, length=LENGTH, slots=SLOTS))
        self.ids = torch.randint(self.model.config.vocab_size, (2, LENGTH))
        self.summaries = torch.randn(2, SLOTS, self.model.config.width).double()
        self.mask = self.layout.piece_BS >= 0
        self.strategy: Strategy = strategy

    def injection(self, summaries: Tensor | None = None) -> Injection:
        return Injection(
            summaries_BSD=self.summaries if summaries is None else summaries,
            mask_BS=self.mask,
            strategy=self.strategy,
            adapter=Gate() if self.strategy == "adapter" else None,
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
    piece = Piece(rule, strategy)
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


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_an_injected_summary_moves_its_piece_through_the_prefix_and_no_other(
    strategy: Strategy,
) -> None:
    piece = Piece("halves", strategy)
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


def test_bars_without_an_injected_summary_are_written_as_without_injection() -> None:
    piece = Piece("halves")
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


def test_summaries_after_the_injection_layer_are_what_the_layers_above_read() -> None:
    piece = Piece("halves", "replace")
    plan = attention.build_plan(piece.layout, RULES["halves"])
    with torch.no_grad():
        own = piece.model.summaries(piece.ids, piece.layout, plan)
        one = piece.logits(summaries=own)
        quiet = NoisedOwn([0, None])
        layout = open_layout(piece.layout, piece.mask)
        opened = attention.build_plan(layout, RULES["halves"])
        other = piece.model(piece.ids, layout, opened, _Quiet(own))
        noised = piece.model(piece.ids, layout, opened, quiet)
    assert torch.allclose(one, other, atol=1e-10)
    assert moved(one, noised).any()


class _Quiet:
    """The closed summaries left alone, the open ones those given."""

    def __init__(self, own: Tensor) -> None:
        self.own = own

    def streams(self, s_BSD: Tensor, is_open_BS1: Tensor) -> tuple[Tensor, Tensor]:
        return s_BSD, torch.where(is_open_BS1, self.own, 0)


def test_the_noise_of_a_row_depends_on_its_seed_alone() -> None:
    own = torch.randn(3, SLOTS, 8)
    is_open = torch.ones(3, SLOTS, 1, dtype=torch.bool)
    is_open[1, 50:] = False
    closed, together = NoisedOwn([5, 6, 7]).streams(own, is_open)
    assert torch.equal(closed, own)
    for row, seed in enumerate((5, 6, 7)):
        part = slice(row, row + 1)
        _, alone = NoisedOwn([seed]).streams(own[part], is_open[part])
        assert torch.equal(together[part], alone)
    assert not together[1, 50:].any()
    _, other = NoisedOwn([5, 6, 8]).streams(own, is_open)
    assert torch.equal(other[:2], together[:2]) and not torch.equal(other[2], together[2])


def test_the_noise_is_no_louder_than_the_summaries_vary_and_carries_no_gradient() -> None:
    own = (torch.randn(64, SLOTS, 4) * torch.tensor([0.1, 1.0, 5.0, 0.0])).requires_grad_()
    is_open = torch.ones(64, SLOTS, 1, dtype=torch.bool)
    _, noised = NoisedOwn(range(64)).streams(own, is_open)
    assert not noised.requires_grad
    ratio = (noised - own).std(1) / own.std(1).clamp(min=1e-9)
    assert ratio[:, 3].max() == 0, "what never varies stays as it is"
    assert ratio[:, :3].max() < 1.3 and ratio[:, :3].min() < 0.1
    assert 0.35 < ratio[:, :3].mean() < 0.65


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, "--alpha 1.5: allowed 0 to 1"),
        ({"strategy": "adapter"}, "--strategy adapter with no adapter"),
        ({"adapter": Gate()}, "--strategy blend with an adapter"),
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


def test_gradients_reach_the_layers_above_through_open_summaries_and_not_below() -> None:
    piece = Piece("halves")
    layout: Layout = open_layout(piece.layout, piece.mask)
    plan = attention.build_plan(layout, RULES["halves"])
    injected = piece.summaries.requires_grad_()
    injection = Injection(summaries_BSD=injected, mask_BS=piece.mask)
    piece.model(piece.ids, layout, plan, injection).square().sum().backward()
    assert injected.grad is not None
    is_read = piece.layout.piece_BS >= 0
    assert (injected.grad.abs().amax(-1) > 0).equal(is_read)
