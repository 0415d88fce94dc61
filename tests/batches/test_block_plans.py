"""Block lists, counted from runs, against the dense mask cut into blocks."""

import numpy as np
import pytest

from meloformer.batches.block_plans import build_blocks
from meloformer.model import attention
from meloformer.model.masks import BLOCK_SIZE, RULES, StageBlocks
from tests.layouts import as_torch, random_layout


def listed(num: np.ndarray, index: np.ndarray) -> np.ndarray:
    """Block lists as a (Q, N) table of booleans."""
    table = np.zeros(index.shape, dtype=bool)
    for query, count in enumerate(num):
        table[query, index[query, :count]] = True
    return table


def blocks_of(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Partly and wholly allowed blocks of a dense mask; a block that sticks out is never whole."""
    rows, columns = (-(-size // BLOCK_SIZE) * BLOCK_SIZE for size in mask.shape)
    padded = np.zeros((rows, columns), dtype=bool)
    padded[: mask.shape[0], : mask.shape[1]] = mask
    blocks = padded.reshape(rows // BLOCK_SIZE, BLOCK_SIZE, columns // BLOCK_SIZE, BLOCK_SIZE)
    full = blocks.all(axis=(1, 3))
    return blocks.any(axis=(1, 3)) & ~full, full


def check_stage(stage: StageBlocks, mask_B1QN: np.ndarray) -> None:
    for row, mask in enumerate(mask_B1QN[:, 0]):
        partial, full = blocks_of(mask)
        found = listed(stage.kv_num_BQ[row], stage.kv_index_BQN[row])
        assert np.array_equal(found, partial)
        assert np.array_equal(listed(stage.full_num_BQ[row], stage.full_index_BQN[row]), full)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("length", [512, 1024, 600, 100])
def test_block_plans_equal_the_dense_rule_block_by_block(rule, length) -> None:
    for seed in range(3):
        layout = random_layout(seed=seed, rows=3, length=length)
        blocks = build_blocks(layout, RULES[rule])
        plan = attention.build_plan(as_torch(layout), RULES[rule])
        check_stage(blocks.summarize, plan.summarize.mask.numpy())
        for stage, call in zip(blocks.update, plan.update, strict=True):
            check_stage(stage, call.mask.numpy())


def test_block_plans_without_summaries_hold_tokens_alone() -> None:
    layout = random_layout(seed=2, rows=3, length=600).without_summaries()
    blocks = build_blocks(layout, RULES["full"])
    plan = attention.build_plan(as_torch(layout), RULES["full"])
    assert blocks.summarize is None
    check_stage(blocks.update[0], plan.update[0].mask.numpy())
