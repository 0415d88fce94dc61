"""Block lists, counted from runs, against the dense mask cut into blocks."""

from dataclasses import replace

import numpy as np
import pytest
from torch.nn.attention.flex_attention import create_block_mask

from meloformer.batches.block_plans import build_blocks
from meloformer.errors import ConfigError
from meloformer.model import attention
from meloformer.model.masks import BLOCK_SIZE, BLOCK_SIZES, RULES, StageBlocks
from tests.layouts import as_torch, random_layout, with_open


def listed(num: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Block lists as a (Q, N) table of booleans."""
    table = np.zeros(index.shape, dtype=bool)
    for query, count in enumerate(num):
        table[query, index[query, :count]] = True
    return table


def blocks_of(mask: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Partly and wholly allowed blocks of a dense mask; a block that sticks out is never whole."""
    rows, columns = (-(-length // size) * size for length in mask.shape)
    padded = np.zeros((rows, columns), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    blocks = padded.reshape(rows // size, size, columns // size, size)
    full = blocks.all(axis=(1, 3))
    return blocks.any(axis=(1, 3)) & ~full, full


def check_stage(stage: StageBlocks, mask_B1QN: np.ndarray, size: int = BLOCK_SIZE) -> None:
    for row, mask in enumerate(mask_B1QN[:, 0]):
        partial, full = blocks_of(mask, size)
        by_query = listed(stage.kv_num_BQ[row], stage.kv_index_BQN[row])
        assert np.array_equal(by_query, partial)
        assert np.array_equal(listed(stage.full_num_BQ[row], stage.full_index_BQN[row]), full)
        by_key = listed(stage.q_num_BN[row], stage.q_index_BNQ[row])
        assert np.array_equal(by_key, partial.T)
        full_by_key = listed(stage.full_q_num_BN[row], stage.full_q_index_BNQ[row])
        assert np.array_equal(full_by_key, full.T)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [512, 1024, 600, 100])
@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_block_plans_equal_the_dense_rule_block_by_block(rule, length, size) -> None:
    for seed in range(3):
        layout = random_layout(seed=seed, rows=3, length=length)
        blocks = build_blocks(layout, RULES[rule], size)
        assert blocks.block_size == size
        plan = attention.build_plan(as_torch(layout), RULES[rule])
        check_stage(blocks.summarize, plan.summarize.mask.numpy(), size)
        for stage, call in zip(blocks.update, plan.update, strict=True):
            check_stage(stage, call.mask.numpy(), size)
            assert (stage.order_BT is None) == (call.order_BT is None)
            if stage.order_BT is not None:
                assert np.array_equal(stage.order_BT, call.order_BT.numpy())
                assert np.array_equal(stage.inverse_BT, call.inverse_BT.numpy())


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [512, 600])
@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_block_plans_with_open_summaries_equal_the_dense_rule(rule, length, size) -> None:
    """Rows where all bars have one, some, and none."""
    for seed, share in enumerate((0.5, 1.0)):
        layout = with_open(random_layout(seed=seed, rows=3, length=length), seed, share)
        blocks = build_blocks(layout, RULES[rule], size)
        plan = attention.build_plan(as_torch(layout), RULES[rule])
        for stage, call in zip(blocks.opened, plan.opened.update, strict=True):
            check_stage(stage, call.mask.numpy(), size)
            assert stage.order_BT is None and stage.inverse_BT is None, "those of `update` serve"
        closed = build_blocks(replace(layout, open_BS=None), RULES[rule], size)
        assert closed.opened == ()
        for stage, other in zip(blocks.update, closed.update, strict=True):
            assert np.array_equal(stage.kv_index_BQN, other.kv_index_BQN)
            assert np.array_equal(stage.full_num_BQ, other.full_num_BQ)


@pytest.mark.parametrize("size", BLOCK_SIZES)
def test_block_plans_hold_what_torch_finds_by_looking_at_every_pair(size) -> None:
    layout = with_open(random_layout(seed=4, rows=2, length=512), seed=4)
    rule = RULES["halves"]
    blocks = as_torch(build_blocks(layout, rule, size))
    flex = attention.build_plan(as_torch(layout), rule, "flex", blocks)
    for call in (flex.summarize, *flex.update, *flex.opened.update):
        num_queries, num_keys = call.mask.seq_lengths
        made = create_block_mask(
            call.mask.mask_mod, 2, None, num_queries, num_keys, device="cpu", BLOCK_SIZE=size
        )
        for name in ("kv", "full_kv", "q", "full_q"):
            numbers = getattr(made, f"{name}_num_blocks"), getattr(call.mask, f"{name}_num_blocks")
            indices = getattr(made, f"{name}_indices"), getattr(call.mask, f"{name}_indices")
            for row in range(2):
                of_torch, ours = (
                    listed(number[row, 0].numpy(), index[row, 0].numpy())
                    for number, index in zip(numbers, indices, strict=True)
                )
                assert np.array_equal(ours, of_torch)


def test_a_block_size_without_kernel_tiles_is_refused() -> None:
    with pytest.raises(ConfigError, match="96 tokens is not supported; allowed: 64, 128"):
        build_blocks(random_layout(seed=0), RULES["full"], 96)


def test_block_plans_without_summaries_hold_tokens_alone() -> None:
    layout = random_layout(seed=2, rows=3, length=600).without_summaries()
    blocks = build_blocks(layout, RULES["full"])
    plan = attention.build_plan(as_torch(layout), RULES["full"])
    assert blocks.summarize is None
    check_stage(blocks.update[0], plan.update[0].mask.numpy())
