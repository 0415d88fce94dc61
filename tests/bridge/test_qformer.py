"""The Q-Former: what it holds, what its answer depends on, and what its loss sees."""

from dataclasses import asdict

import pytest
import torch

from meloformer.bridge.bridges import BridgeBatch
from meloformer.bridge.diffusion_bridge import DiffusionBridgeConfig
from meloformer.bridge.qformer import QFormer, QFormerConfig, regression
from meloformer.bridge.shape import BridgeShape
from meloformer.bridge.text_encoder import TextStates
from meloformer.errors import ConfigError

SMALL = QFormerConfig(
    text_width=24, summary_width=32, num_queries=12, width=32, num_layers=2, num_heads=4,
    ffn_width=64, dropout=0.0,
)  # fmt: skip


def text_states(lengths: list[int], width: int = 24, seed: int = 0) -> TextStates:
    """Random states of texts of some lengths, garbage in what pads them."""
    longest = max(lengths)
    rows = [
        torch.randn(longest, width, generator=torch.Generator().manual_seed(seed + i))
        for i in range(len(lengths))
    ]
    mask = torch.arange(longest)[None] < torch.tensor(lengths)[:, None]
    return TextStates(torch.stack(rows), mask, torch.stack([row[0] for row in rows]))


def qformer(config: QFormerConfig = SMALL) -> QFormer:
    torch.manual_seed(0)
    model = QFormer(config)
    with torch.no_grad():  # the first weights are so small that texts would hardly differ
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape) * 0.1)
    return model.eval()


def batch_of(num_bars: list[int], states: TextStates, width: int = 32) -> BridgeBatch:
    longest = max(num_bars)
    return BridgeBatch(
        states=states,
        summaries_BSD=torch.randn(len(num_bars), longest, width),
        mask_BS=torch.arange(longest)[None] < torch.tensor(num_bars)[:, None],
        row_seeds=range(len(num_bars)),
    )


def count(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_a_qformer_for_qwen3_has_25_831_936_parameters_to_train_and_621_6_million_in_all() -> None:
    with torch.device("meta"):
        model = QFormer(QFormerConfig(text_width=1024, summary_width=512))
    assert count(model) == 25_831_936
    assert count(model.projection) == 0
    qwen3 = 595_776_512  # the encoder's own test counts it on the meta device
    assert round((count(model) + qwen3) / 1e6, 1) == 621.6


@pytest.mark.parametrize(("width", "projection"), [(768, 393_984), (1024, 525_312), (128, 65_664)])
def test_the_projection_to_another_width_is_counted_apart(width: int, projection: int) -> None:
    with torch.device("meta"):
        model = QFormer(QFormerConfig(text_width=1024, summary_width=width))
    assert count(model.projection) == projection
    assert count(model) - projection == 25_831_936


def test_it_has_the_parameters_of_a_transformer_decoder_a_linear_map_and_the_queries() -> None:
    with torch.device("meta"):
        layer = torch.nn.TransformerDecoderLayer(512, 8, 2048)
        decoder = torch.nn.TransformerDecoder(layer, 6, torch.nn.LayerNorm(512))
        linear = torch.nn.Linear(1024, 512)
    assert count(decoder) + count(linear) + 160 * 512 == 25_831_936


def test_a_text_alone_gives_the_summaries_that_it_gives_in_a_batch() -> None:
    model, states = qformer(), text_states([3, 7, 5])
    together = model.sample(states, 9, seed=0)
    for row, length in enumerate([3, 7, 5]):
        alone = TextStates(
            states.states_BLW[row : row + 1, :length],
            torch.ones(1, length, dtype=torch.bool),
            states.pooled_BW[row : row + 1],
        )
        torch.testing.assert_close(
            model.sample(alone, 9, seed=1)[0], together[row], rtol=0, atol=1e-5
        )
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_padding_on_either_side_of_a_text_changes_nothing() -> None:
    model = qformer()
    real = torch.randn(1, 4, 24)
    noise = torch.full((1, 3, 24), 1e4)
    ones, zeros = torch.ones(1, 4, dtype=torch.bool), torch.zeros(1, 3, dtype=torch.bool)
    answers = [
        model.sample(TextStates(states, mask, real[:, 0]), 5, seed=0)
        for states, mask in (
            (real, ones),
            (torch.cat([real, noise], 1), torch.cat([ones, zeros], 1)),
            (torch.cat([noise, real], 1), torch.cat([zeros, ones], 1)),
        )
    ]
    torch.testing.assert_close(answers[1], answers[0], rtol=0, atol=1e-5)
    torch.testing.assert_close(answers[2], answers[0], rtol=0, atol=1e-5)


def test_a_shorter_piece_in_a_batch_is_answered_as_if_it_were_alone() -> None:
    model, states = qformer(), text_states([4, 4])
    mask = torch.tensor([[True] * 3 + [False] * 5, [True] * 8])
    together = model(states.states_BLW, states.mask_BL, mask)
    alone = model(states.states_BLW[:1], states.mask_BL[:1], mask[:1, :3])
    torch.testing.assert_close(together[:1, :3], alone, rtol=0, atol=1e-5)


def test_answers_of_several_lengths_asked_for_together_are_those_asked_for_alone() -> None:
    model, states = qformer(), text_states([4, 4])
    mask = torch.tensor([[True] * 3 + [False] * 5, [True] * 8])
    together = model.sample(states, 8, seed=0, mask_BS=mask)
    alone = TextStates(states.states_BLW[:1], states.mask_BL[:1], states.pooled_BW[:1])
    wanted = model.sample(alone, 3, seed=0)
    torch.testing.assert_close(together[:1, :3], wanted, rtol=0, atol=1e-5)
    assert not torch.allclose(together[:1, :3], model.sample(alone, 8, seed=0)[:, :3])


def test_every_bar_of_a_piece_is_another() -> None:
    summaries = qformer().sample(text_states([4]), 12, seed=0)[0]
    distances = torch.cdist(summaries, summaries) + torch.eye(12) * 1e3
    assert distances.min() > 1e-2


def test_padded_bars_are_no_part_of_the_loss_nor_of_its_gradient() -> None:
    model, states = qformer().train(), text_states([4, 4])
    batch = batch_of([3, 8], states)
    gradients = []
    for garbage in (0.0, float("nan")):
        summaries = batch.summaries_BSD.masked_fill(~batch.mask_BS[..., None], garbage)
        model.zero_grad()
        loss, _ = model.loss(
            BridgeBatch(
                states=batch.states,
                summaries_BSD=summaries,
                mask_BS=batch.mask_BS,
                row_seeds=(0, 1),
            )
        )
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in model.parameters()]))  # type: ignore[union-attr]
    assert torch.equal(*gradients)
    assert torch.isfinite(gradients[0]).all()


def test_the_loss_is_the_mean_over_all_real_bars_and_not_over_rows() -> None:
    batch = batch_of([1, 3], text_states([2, 2]))
    predicted = torch.randn(2, 3, 32)
    real = (predicted - batch.summaries_BSD)[batch.mask_BS]
    torch.testing.assert_close(regression(predicted, batch), real.square().mean())


def test_a_loss_over_shapes_that_would_be_broadcast_is_refused() -> None:
    batch = batch_of([3, 3], text_states([2, 2]))
    with pytest.raises(AssertionError):
        regression(torch.zeros(3, 32), batch)


def test_every_parameter_gets_a_gradient() -> None:
    model = qformer().train()
    loss, _ = model.loss(batch_of([12, 5], text_states([4, 3])))
    loss.backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A key's bias moves all scores of a query alike, which softmax does not see.
    assert [name for name in without if not name.endswith("key.bias")] == []


def test_states_of_any_scale_give_finite_summaries_of_the_same_size() -> None:
    model, states = qformer(), text_states([4])
    large = TextStates(states.states_BLW * 1e4, states.mask_BL, states.pooled_BW)
    torch.testing.assert_close(model.sample(large, 5, seed=0), model.sample(states, 5, seed=0))


@pytest.mark.parametrize("config", [QFormerConfig, DiffusionBridgeConfig])
def test_both_bridges_have_one_shape_that_stands_first_in_their_files(config) -> None:
    saved = asdict(config(text_width=8, summary_width=4))
    shape = asdict(BridgeShape(text_width=8, summary_width=4))
    assert list(saved.items())[: len(shape)] == list(shape.items())
    with pytest.raises(
        ConfigError, match="--bridge_width 30 with 4 heads; allowed: a multiple of 8"
    ):
        config(text_width=8, summary_width=4, width=30, num_heads=4)


def test_more_bars_than_queries_and_guidance_are_refused_in_one_line() -> None:
    model, states = qformer(), text_states([4])
    with pytest.raises(ConfigError, match="13 bars; allowed: up to 12"):
        model.sample(states, 13, seed=0)
    with pytest.raises(ConfigError, match="guidance 2"):
        model.sample(states, 5, seed=0, guidance=2.0)
