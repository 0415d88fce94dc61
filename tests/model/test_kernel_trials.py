from pathlib import Path

import pytest
import torch

from meloformer.batches.block_plans import build_blocks
from meloformer.errors import ConfigError
from meloformer.model.kernel import block_mask
from meloformer.model.kernel_trials import (
    _candidates_logged,
    fastest_options,
    flash_is_right,
    tune_tiles,
)
from meloformer.model.masks import RULES
from tests.layouts import as_torch, random_layout

FORWARD = [
    {"type": "triton", "time": 0.9, "BLOCK_M": 128, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
    {"type": "triton", "time": 0.4, "BLOCK_M": 64, "BLOCK_N": 64, "num_warps": 4, "num_stages": 3},
]
BACKWARD = [
    {"time": 0.7, "BLOCK_M1": 32, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 32, "num_warps": 8},
    {"time": 0.8, "BLOCK_M1": 64, "BLOCK_N1": 64, "BLOCK_M2": 64, "BLOCK_N2": 64, "num_warps": 4},
]
# As torch 2.11 and torch 2.13 write them (_inductor/select_algorithm.py).
LOGS = {
    "2.11": [
        {"('forward', 1, 8, 8, 512, 640, 64, 64)": FORWARD},
        {"('backward', 1, 8, 8, 512, 640, 64, 64)": BACKWARD},
    ],
    "2.13": [
        {"kernel_type": "forward", "query_shape": "[1, 8, 512, 64]", "choices": FORWARD},
        {"kernel_type": "backward", "query_shape": "[1, 8, 512, 64]", "choices": BACKWARD},
    ],
}


@pytest.mark.parametrize("log", LOGS.values(), ids=LOGS)
def test_the_fastest_candidate_of_each_pass_becomes_options_of_a_call(log) -> None:
    assert fastest_options(log) == {
        "fwd_BLOCK_M": 64,
        "fwd_BLOCK_N": 64,
        "fwd_num_warps": 4,
        "fwd_num_stages": 3,
        "bwd_BLOCK_M1": 32,
        "bwd_BLOCK_N1": 64,
        "bwd_BLOCK_M2": 64,
        "bwd_BLOCK_N2": 32,
        "bwd_num_warps": 8,
    }


def test_tiles_are_not_timed_where_there_is_no_gpu() -> None:
    blocks = as_torch(build_blocks(random_layout(seed=0), RULES["full"]))
    mask = block_mask(blocks.update[0], 512, 128)
    with pytest.raises(ConfigError, match="found cpu"):
        tune_tiles(mask, num_heads=2, num_kv_heads=2, head_width=64, dtype=torch.bfloat16)


def test_torch_is_told_where_to_log_and_then_nothing_any_more(tmp_path: Path) -> None:
    # Nothing is compiled here before: torch has not loaded what reads the name by itself.
    with _candidates_logged(tmp_path / "tried.json"):
        found = torch._inductor.select_algorithm.get_flex_attention_log_filename()
        assert found == str(tmp_path / "tried.json")
    assert torch._inductor.select_algorithm.get_flex_attention_log_filename() is None


def test_flash_is_not_right_where_it_cannot_run() -> None:
    assert not flash_is_right(torch.device("cpu"))


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_tuning_finds_tiles_that_fit_blocks_of_64() -> None:
    blocks = as_torch(build_blocks(random_layout(seed=0), RULES["full"], 64))
    mask = block_mask(blocks.update[0], 512, 64).to("cuda")
    found = tune_tiles(mask, num_heads=2, num_kv_heads=2, head_width=64, dtype=torch.bfloat16)
    assert {"fwd_BLOCK_M", "bwd_BLOCK_M1"} <= set(found)
    assert all(value <= 64 for name, value in found.items() if "BLOCK" in name)
