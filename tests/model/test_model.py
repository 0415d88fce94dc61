"""The model itself: rotation, sizes, gradients, the compiled kernel against the dense oracle."""

import pytest
import torch

from meloformer.batches.block_plans import build_blocks
from meloformer.errors import ConfigError
from meloformer.model import attention, kernel, masks
from meloformer.model.config import MuseFormerConfig
from meloformer.model.injection import NoisedOwn, Start
from meloformer.model.museformer import MuseFormer
from meloformer.model.rotary import rotary_angles, rotate
from tests.layouts import as_torch, random_layout, tiny_config, with_open


def test_rotation_keeps_lengths_and_only_differences_reach_a_score() -> None:
    generator = torch.Generator().manual_seed(0)
    q, k = (torch.randn(1, 1, 1, 16, dtype=torch.float64, generator=generator) for _ in range(2))

    def turned(x: torch.Tensor, bar: int, index: int) -> torch.Tensor:
        angles = rotary_angles(torch.tensor([[bar]]), torch.tensor([[index]]), 16, 10_000.0)
        return rotate(x, angles.double())

    assert torch.allclose(turned(q, 7, 31).norm(), q.norm())
    score = (turned(q, 9, 40) * turned(k, 4, 15)).sum()
    shifted = (turned(q, 19, 45) * turned(k, 14, 20)).sum()
    assert torch.allclose(score, shifted, atol=1e-6)
    assert not torch.allclose(score, (turned(q, 9, 41) * turned(k, 4, 15)).sum(), atol=1e-3)
    assert not torch.allclose(score, (turned(q, 10, 40) * turned(k, 4, 15)).sum(), atol=1e-3)


@pytest.mark.parametrize("rule", masks.RULES)
def test_every_parameter_gets_a_gradient(rule) -> None:
    layout = as_torch(random_layout(seed=1))
    torch.manual_seed(0)
    model = MuseFormer(tiny_config(rule=rule))
    ids = torch.randint(0, 976, layout.piece_BT.shape)
    logits = model(ids, layout, attention.build_plan(layout, masks.RULES[rule]))
    logits.logsumexp(-1).sum().backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


def flex_difference(
    rule: str,
    layout,
    config: MuseFormerConfig,
    block_size: int = masks.BLOCK_SIZE,
    start: Start | None = None,
) -> float:
    torch.manual_seed(0)
    model = MuseFormer(config).eval()
    tensors = as_torch(layout)
    ids = torch.randint(0, 976, tensors.piece_BT.shape)
    blocks = as_torch(build_blocks(layout, masks.RULES[rule], block_size))
    with torch.no_grad():
        dense = model(ids, tensors, attention.build_plan(tensors, masks.RULES[rule]), start)
        plan = attention.build_plan(tensors, masks.RULES[rule], "flex", blocks)
        flex = model(ids, tensors, plan, start)
    return (dense - flex).abs().max().item()


@pytest.mark.slow  # `halves`, which compiles every kind of call, is among the quick ones below
@pytest.mark.parametrize("block_size", masks.BLOCK_SIZES)
@pytest.mark.parametrize("rule", masks.RULES)
def test_compiled_flex_equals_dense(rule, block_size) -> None:
    torch._dynamo.reset()
    config = tiny_config(rule=rule, num_layers=2)
    # Neither size divides the row.
    layout = random_layout(seed=2, length=500)
    assert flex_difference(rule, layout, config, block_size) < 1e-5


def test_twenty_packed_batches_take_the_declared_number_of_graphs() -> None:
    """SUMMARIZE and the two calls of halves: three graphs, whatever the music is."""
    torch._dynamo.reset()
    kernel.compiled_flex.cache_clear()
    counters = torch._dynamo.utils.counters
    counters.clear()
    config = tiny_config(num_layers=2)
    for seed in range(20):
        assert flex_difference("halves", random_layout(seed=seed), config) < 1e-5
    assert counters["stats"]["unique_graphs"] == 3


@pytest.mark.slow  # five graphs
def test_compiled_flex_with_open_summaries_equals_dense_in_one_more_graph_per_group() -> None:
    """Rows where all bars have one, some, and none; what was drawn is no part of the code."""
    torch._dynamo.reset()
    kernel.compiled_flex.cache_clear()
    counters = torch._dynamo.utils.counters
    counters.clear()
    config = tiny_config(num_layers=5, open_summary_rate=0.5)
    for seed, share in enumerate((1.0, 0.5, 0.0)):
        layout = with_open(random_layout(seed=seed), seed, share)
        assert flex_difference("halves", layout, config, start=NoisedOwn((seed, 9))) < 1e-5
    assert counters["stats"]["unique_graphs"] == 3 + 2


def test_flex_on_the_cpu_refuses_to_train() -> None:
    layout = random_layout(seed=0)
    tensors = as_torch(layout)
    rule = masks.RULES["halves"]
    plan = attention.build_plan(tensors, rule, "flex", as_torch(build_blocks(layout, rule)))
    model = MuseFormer(tiny_config())
    with pytest.raises(ConfigError, match="no backward on the CPU"):
        model(torch.zeros_like(tensors.piece_BT).long(), tensors, plan)


@pytest.mark.parametrize(
    "changes", [{"num_heads": 3}, {"num_kv_heads": 3}, {"rule": "dense"}, {"num_heads": 64}]
)
def test_settings_that_contradict_each_other_are_refused(changes) -> None:
    with pytest.raises(ConfigError):
        tiny_config(**changes)
