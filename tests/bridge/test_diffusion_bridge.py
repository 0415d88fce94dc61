from dataclasses import replace

import pytest
import torch
from torch import Tensor

from meloformer.bridge.bridges import Bridge, BridgeBatch
from meloformer.bridge.diffusion_bridge import DiffusionBridge, DiffusionBridgeConfig
from meloformer.bridge.flow import row_seed
from meloformer.bridge.text_encoder import TextStates
from meloformer.errors import ConfigError

TINY = DiffusionBridgeConfig(
    text_width=12,
    summary_width=8,
    num_queries=20,
    width=32,
    num_layers=2,
    num_heads=2,
    ffn_width=64,
)


def some_bridge(config: DiffusionBridgeConfig = TINY, seed: int = 0) -> DiffusionBridge:
    """One whose every part has a say, as after training."""
    generator = torch.Generator().manual_seed(seed)
    bridge = DiffusionBridge(config)
    with torch.no_grad():
        for parameter in bridge.parameters():
            parameter.normal_(std=0.15, generator=generator)
    return bridge.eval()


def some_states(lengths: tuple[int, ...] = (5, 3, 7), seed: int = 0, width: int = 12) -> TextStates:
    """Texts of these many tokens, padded on the right with what is no state of theirs."""
    generator = torch.Generator().manual_seed(seed)
    rows = [torch.randn(length, width, generator=generator) for length in lengths]
    states = TextStates.of_rows([(row, row.mean(0)) for row in rows])
    garbage = torch.full_like(states.states_BLW, 1e4)
    mask_BL1 = states.mask_BL.unsqueeze(-1)
    return replace(states, states_BLW=torch.where(mask_BL1, states.states_BLW, garbage))


def some_batch(bars: tuple[int, ...] = (6, 2, 9), seed: int = 0) -> BridgeBatch:
    generator = torch.Generator().manual_seed(seed)
    return BridgeBatch(
        states=some_states(),
        summaries_BSD=torch.randn(len(bars), max(bars), 8, generator=generator),
        mask_BS=torch.arange(max(bars)) < torch.tensor(bars)[:, None],
        row_seeds=[row_seed(seed, number) for number in range(len(bars))],
    )


def row_of(states: TextStates, row: int) -> TextStates:
    length = int(states.mask_BL[row].sum())
    return TextStates(
        states.states_BLW[row : row + 1, :length],
        states.mask_BL[row : row + 1, :length],
        states.pooled_BW[row : row + 1],
    )


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_answers_of_several_lengths_asked_for_together_are_those_asked_for_alone(
    guidance: float,
) -> None:
    bridge, states, bars = some_bridge(), some_states(), (6, 2, 9)
    mask_BS = torch.arange(9) < torch.tensor(bars)[:, None]
    flow = {"steps": 2, "guidance": guidance}
    together = bridge.sample(states, 9, seed=[3, 4, 5], mask_BS=mask_BS, **flow)
    for row, num_bars in enumerate(bars):
        alone = bridge.sample(row_of(states, row), num_bars, seed=[3 + row], **flow)
        torch.testing.assert_close(together[row, :num_bars], alone[0], rtol=0, atol=1e-5)


def test_it_is_a_bridge() -> None:
    bridge: Bridge = some_bridge()
    assert bridge.config == TINY


def test_the_default_size_is_what_arithmetic_says() -> None:
    """Weights and biases of every part, at the widths of Qwen3-Embedding-0.6B and small."""
    w, f, e, d = 512, 2048, 1024, 512

    def linear(inputs: int, outputs: int) -> int:
        return inputs * outputs + outputs

    layer = 9 * w + linear(w, 3 * w) + 3 * linear(w, w) + linear(w, 2 * w)
    layer += linear(w, f) + linear(f, w)
    whole = linear(e, w) + w + linear(d, w) + 2 * linear(w, w) + linear(w, 9 * w)
    whole += 6 * layer + linear(w, 2 * w) + linear(w, d)
    bridge = DiffusionBridge(DiffusionBridgeConfig(text_width=e, summary_width=d))
    assert sum(p.numel() for p in bridge.parameters()) == whole == 29_698_560


def test_an_untrained_bridge_does_not_move_and_all_its_parts_begin_to_learn() -> None:
    torch.manual_seed(0)
    bridge = DiffusionBridge(replace(TINY, condition_drop=0.5))
    batch = some_batch()
    optimizer = torch.optim.SGD(bridge.parameters(), lr=0.1)
    text = bridge.read_text(batch.states.states_BLW, batch.states.mask_BL)
    velocity = bridge(batch.summaries_BSD, torch.rand(3), batch.mask_BS, text)
    assert not velocity.any()
    # The way out opens first, then the gates, then what lies behind them.
    for _ in range(3):
        optimizer.zero_grad()
        bridge.loss(batch)[0].backward()
        optimizer.step()
    silent = [name for name, p in bridge.named_parameters() if p.grad is None or not p.grad.any()]
    assert not silent


def test_padding_of_bars_and_of_texts_changes_nothing_of_a_velocity() -> None:
    bridge, batch = some_bridge(), some_batch()
    t_B = torch.tensor([0.1, 0.5, 0.9])

    def velocity(x_BSD: Tensor, mask_BS: Tensor, states: TextStates, t_B: Tensor) -> Tensor:
        text = bridge.read_text(states.states_BLW, states.mask_BL)
        return bridge(x_BSD, t_B, mask_BS, text)

    together = velocity(batch.summaries_BSD, batch.mask_BS, batch.states, t_B)
    for row, num_bars in enumerate((6, 2, 9)):
        alone = velocity(
            batch.summaries_BSD[row : row + 1, :num_bars],
            batch.mask_BS[row : row + 1, :num_bars],
            row_of(batch.states, row),
            t_B[row : row + 1],
        )
        torch.testing.assert_close(together[row, :num_bars], alone[0], rtol=1e-5, atol=1e-5)


def test_a_text_padded_on_the_left_says_the_same() -> None:
    bridge, states = some_bridge(), row_of(some_states(), 1)
    on_the_left = TextStates(
        torch.cat([torch.full((1, 4, 12), 1e4), states.states_BLW], dim=1),
        torch.cat([torch.zeros(1, 4, dtype=torch.bool), states.mask_BL], dim=1),
        states.pooled_BW,
    )
    found = [bridge.sample(one, 6, seed=1, steps=2) for one in (states, on_the_left)]
    torch.testing.assert_close(found[0], found[1], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("garbage", [1e30, float("nan"), float("inf")])
def test_what_padded_bars_hold_reaches_neither_the_loss_nor_its_gradient(garbage: float) -> None:
    bridge, batch = some_bridge().train(), some_batch()
    spoiled = batch.summaries_BSD.masked_fill(~batch.mask_BS.unsqueeze(-1), garbage)
    losses, gradients = [], []
    for one in (batch, replace(batch, summaries_BSD=spoiled)):
        bridge.zero_grad()
        loss, _ = bridge.loss(one)
        loss.backward()
        losses.append(loss.item())
        gradients.append([p.grad.clone() for p in bridge.parameters() if p.grad is not None])
    assert losses[0] == losses[1]
    assert all(map(torch.equal, *gradients))


def test_the_loss_is_a_mean_over_real_bars_however_rows_are_cut_into_batches() -> None:
    bridge, batch = some_bridge().train(), some_batch()
    whole, _ = bridge.loss(batch)
    parts = []
    for row, num_bars in enumerate((6, 2, 9)):
        part = BridgeBatch(
            states=row_of(batch.states, row),
            summaries_BSD=batch.summaries_BSD[row : row + 1, :num_bars],
            mask_BS=batch.mask_BS[row : row + 1, :num_bars],
            row_seeds=batch.row_seeds[row : row + 1],
            num_bars=17,
        )
        parts.append(bridge.loss(part)[0].item())
    assert sum(parts) == pytest.approx(whole.item(), rel=1e-5)


def test_a_row_of_nothing_costs_nothing_and_poisons_no_gradient() -> None:
    bridge, batch = some_bridge().train(), some_batch()
    mask_BS = batch.mask_BS.clone()
    mask_BS[1] = False
    mask_BL = batch.states.mask_BL.clone()
    mask_BL[1] = False
    empty = replace(
        batch, mask_BS=mask_BS, states=replace(batch.states, mask_BL=mask_BL), num_bars=15.0
    )
    loss, _ = bridge.loss(empty)
    loss.backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in bridge.parameters())
    rows = [0, 2]
    without = BridgeBatch(
        states=TextStates(
            batch.states.states_BLW[rows], batch.states.mask_BL[rows], batch.states.pooled_BW[rows]
        ),
        summaries_BSD=batch.summaries_BSD[rows],
        mask_BS=batch.mask_BS[rows],
        row_seeds=[batch.row_seeds[row] for row in rows],
        num_bars=15.0,
    )
    assert loss.item() == pytest.approx(bridge.loss(without)[0].item(), rel=1e-5)


def test_the_loss_is_the_one_of_the_paper() -> None:
    """Of one row by hand: x_t on the line, the difference of both ends as the target."""
    bridge, batch = some_bridge(), some_batch((4,))
    batch = replace(batch, states=row_of(batch.states, 0))
    noise_BSD, t_B, _ = bridge._draw(batch.row_seeds, batch.summaries_BSD)
    t = t_B.item()
    x_BSD = (1 - t) * noise_BSD + t * batch.summaries_BSD
    text = bridge.read_text(batch.states.states_BLW, batch.states.mask_BL)
    velocity = bridge(x_BSD, t_B, batch.mask_BS, text)
    wanted = ((velocity - (batch.summaries_BSD - noise_BSD)) ** 2).mean()
    loss, metrics = bridge.loss(batch)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    implied = x_BSD + (1 - t) * velocity
    error = ((implied - batch.summaries_BSD) ** 2).mean().item()
    assert metrics["summary_error"].item() == pytest.approx(error, rel=1e-4)


def test_the_text_is_dropped_as_often_as_said_and_never_in_evaluation() -> None:
    bridge = some_bridge(replace(TINY, num_queries=1, condition_drop=0.1))
    seeds = [row_seed(0, number) for number in range(3000)]
    data_BSD = torch.zeros(3000, 1, 8)
    _, t_B, without_B = bridge._draw(seeds, data_BSD)
    assert without_B.float().mean().item() == pytest.approx(0.1, abs=0.02)
    # Who goes without a text has nothing to do with the time it is asked for.
    assert t_B[without_B].mean().item() == pytest.approx(0.5, abs=0.06)

    always = some_bridge(replace(TINY, condition_drop=0.999))
    batch, other = some_batch(), replace(some_batch(), states=some_states(seed=9))
    losses = {
        mode: [always.train(mode).loss(one)[0].item() for one in (batch, other)]
        for mode in (True, False)
    }
    assert losses[True][0] == losses[True][1], "nothing of a dropped text is read"
    assert losses[False][0] != losses[False][1]


def test_a_dropped_row_reads_the_same_nothing_whatever_its_length() -> None:
    bridge = some_bridge()
    states, everywhere_B = some_states(), torch.ones(3, dtype=torch.bool)
    text = bridge.read_text(states.states_BLW, states.mask_BL, everywhere_B)
    x_BSD = torch.randn(1, 5, 8).expand(3, -1, -1)
    velocity = bridge(x_BSD, torch.full((3,), 0.4), torch.ones(3, 5, dtype=torch.bool), text)
    torch.testing.assert_close(velocity[1:], velocity[:1].expand(2, -1, -1), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "settings", [{}, {"guidance": 2.5}, {"solver": "heun"}, {"guidance": 0.0, "solver": "heun"}]
)
def test_a_text_alone_gives_what_it_gives_in_a_batch(settings: dict) -> None:
    bridge, states = some_bridge(), some_states()
    together = bridge.sample(states, 9, seed=[4, 5, 6], steps=3, **settings)
    for row in range(3):
        alone = bridge.sample(row_of(states, row), 9, seed=4 + row, steps=3, **settings)
        torch.testing.assert_close(together[row], alone[0], rtol=1e-4, atol=1e-4)


def test_windows_that_share_a_bar_begin_with_the_same_noise_there() -> None:
    bridge, states = some_bridge(), some_states()
    for parameter in bridge.summary_out.parameters():
        torch.nn.init.zeros_(parameter)  # no velocity: the answer is the noise
    whole = bridge.sample(states, 9, seed=[4, 5, 6])
    assert torch.equal(bridge.sample(states, 6, seed=[4, 5, 6], first_bar=3), whole[:, 3:])
    assert not torch.equal(whole[:, :6], whole[:, 3:])


def test_a_seed_gives_the_same_summaries_again_and_another_seed_others() -> None:
    bridge, states = some_bridge(), some_states()
    first = bridge.sample(states, 7, seed=3)
    assert torch.equal(bridge.sample(states, 7, seed=3), first)
    assert torch.equal(bridge.sample(states, 7, seed=[3, 3, 3]), first)
    other = bridge.sample(states, 7, seed=[3, 8, 3])
    assert not torch.allclose(other[1], first[1])
    torch.testing.assert_close(other[0], first[0])


def test_guidance_1_is_the_plain_answer_0_that_without_a_text_and_2_lies_beyond() -> None:
    bridge, states, others = some_bridge(), some_states(), some_states(seed=5)

    def one_step(states: TextStates, guidance: float) -> Tensor:
        return bridge.sample(states, 4, seed=0, steps=1, guidance=guidance)

    plain = bridge.sample(states, 4, seed=0, steps=1)
    assert torch.equal(one_step(states, 1.0), plain)
    free = one_step(states, 0.0)
    torch.testing.assert_close(one_step(others, 0.0), free, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(one_step(others, 1.0), plain, atol=1e-2)
    torch.testing.assert_close(one_step(states, 2.0), 2 * plain - free, rtol=1e-4, atol=1e-4)


def test_bars_that_begin_alike_differ_by_their_place() -> None:
    bridge, states = some_bridge(), row_of(some_states(), 0)
    text = bridge.read_text(states.states_BLW, states.mask_BL)
    x_BSD = torch.randn(1, 1, 8).expand(-1, 20, -1)
    velocity = bridge(x_BSD, torch.tensor([0.5]), torch.ones(1, 20, dtype=torch.bool), text)[0]
    apart = torch.cdist(velocity, velocity) + 1e9 * torch.eye(20)
    assert apart.min() > 1e-2


def test_a_bar_hears_of_the_others() -> None:
    bridge, states = some_bridge(), row_of(some_states(), 0)
    text = bridge.read_text(states.states_BLW, states.mask_BL)
    x_BSD, mask_BS = torch.randn(1, 6, 8), torch.ones(1, 6, dtype=torch.bool)
    before = bridge(x_BSD, torch.tensor([0.5]), mask_BS, text)
    x_BSD[0, 5] += 1
    after = bridge(x_BSD, torch.tensor([0.5]), mask_BS, text)
    assert (after - before)[0, 0].abs().max() > 1e-4


def test_half_precision_weights_take_and_give_what_the_others_do() -> None:
    bridge, batch = some_bridge(), some_batch()
    whole = bridge.loss(batch)[0]
    half, _ = bridge.bfloat16().loss(batch)
    assert half.dtype == torch.float32
    assert half.item() == pytest.approx(whole.item(), rel=0.05)


def test_what_it_cannot_do_is_refused() -> None:
    bridge, states = some_bridge(), some_states()
    with pytest.raises(ConfigError, match="21 bars asked for: allowed 1 to 20"):
        bridge.sample(states, 21, seed=0)
    with pytest.raises(ConfigError, match="2 seeds for 3 texts"):
        bridge.sample(states, 4, seed=[0, 1])
    with pytest.raises(ConfigError, match="width 10: expected 12"):
        bridge.sample(some_states(width=10), 4, seed=0)
    with pytest.raises(ConfigError, match="--steps 0"):
        bridge.sample(states, 4, seed=0, steps=0)
    with pytest.raises(ConfigError, match="--bridge_width 30 with 4 heads"):
        replace(TINY, width=30, num_heads=4)
    with pytest.raises(ConfigError, match="--condition_drop 1: "):
        replace(TINY, condition_drop=1.0)


def test_it_learns_which_summaries_belong_to_which_text() -> None:
    """Two texts with normal summaries of other means, which rise from bar to bar."""
    torch.manual_seed(0)
    bridge = DiffusionBridge(TINY)
    states = some_states((4, 4))
    means_BSD = torch.tensor([-1.0, 1.0]).view(2, 1, 1) + torch.linspace(-0.5, 0.5, 4).view(1, 4, 1)
    optimizer = torch.optim.Adam(bridge.parameters(), lr=5e-3)
    generator = torch.Generator().manual_seed(0)
    rows = torch.arange(2).repeat(16)
    texts = TextStates(states.states_BLW[rows], states.mask_BL[rows], states.pooled_BW[rows])
    for step in range(100):
        noise = torch.randn(32, 4, 8, generator=generator)
        batch = BridgeBatch(
            states=texts,
            summaries_BSD=means_BSD[rows] + 0.2 * noise,
            mask_BS=torch.ones(32, 4, dtype=torch.bool),
            row_seeds=[row_seed(step, row) for row in range(32)],
        )
        optimizer.zero_grad()
        bridge.loss(batch)[0].backward()
        optimizer.step()
    made = bridge.eval().sample(texts, 4, seed=range(32), solver="heun")
    for row in range(2):
        of_text = made[row::2]
        torch.testing.assert_close(of_text.mean((0, 2)), means_BSD[row, :, 0], rtol=0, atol=0.2)
        assert of_text.std(0).mean().item() < 0.5, "it began from noise of 1"
