"""The roads to the dense twin of the kernel end in errors."""

import functools
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch._dynamo.exc import FailOnRecompileLimitHit
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)

from meloformer.batches.block_plans import build_blocks
from meloformer.errors import ConfigError
from meloformer.model import attention, kernel
from meloformer.model import kernel_options as kernel_options_module
from meloformer.model.kernel_options import PINNED, device_family, kernel_options
from meloformer.model.masks import BLOCK_SIZES, RULES
from tests.layouts import as_torch, random_layout

RULE = RULES["museformer"]


@functools.cache
def inputs(length: int = 256):
    """Queries, keys, values and a flex plan of one row."""
    layout = random_layout(seed=1, rows=1, length=length)
    blocks = as_torch(build_blocks(layout, RULE))
    plan = attention.build_plan(as_torch(layout), RULE, "flex", blocks)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (
        torch.randn(1, 2, size, 16, generator=generator)
        for size in (length, length + 128, length + 128)
    )
    return q, k, v, plan


def test_an_uncompiled_call_is_an_error() -> None:
    with torch.compiler.set_stance("force_eager"), pytest.raises(ConfigError, match="uncompiled"):
        attention.update(*inputs())


@pytest.mark.slow  # starts a process
def test_switching_the_compiler_off_by_its_variable_is_an_error() -> None:
    code = (
        "from tests.model.test_kernel import attention, inputs\n"
        "from meloformer.errors import ConfigError\n"
        "try: attention.update(*inputs())\n"
        "except ConfigError as error: print(error)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={"TORCH_COMPILE_DISABLE": "1", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "would be computed densely" in done.stdout


def test_a_checkpoint_policy_for_single_operations_is_refused_with_the_remedy() -> None:
    def policy(context, operation, *args, **kwargs):
        return CheckpointPolicy.PREFER_RECOMPUTE

    contexts = functools.partial(create_selective_checkpoint_contexts, policy)
    with pytest.raises(ConfigError, match="--checkpointing ffn or --checkpointing layer"):
        checkpoint(attention.update, *inputs(), use_reentrant=False, context_fn=contexts)


def test_a_shape_beyond_the_limit_of_graphs_is_an_error() -> None:
    """As `compiled_flex` compiles, but with a backend that takes no time."""
    torch._dynamo.reset()
    compiled = torch.compile(kernel._flex, dynamic=False, fullgraph=True, backend="eager")
    with torch._dynamo.config.patch(recompile_limit=1):
        for length in (256, 384):
            q, k, v, plan = inputs(length)
            call = functools.partial(compiled, q, k, v, plan.update[0].mask, False, None)
            if length == 256:
                call()
                continue
            with pytest.raises(FailOnRecompileLimitHit):
                call()
    torch._dynamo.reset()


@pytest.mark.slow
def test_a_region_compiled_by_another_backend_leaves_the_kernel_to_ours() -> None:
    torch._dynamo.reset()
    kernel.compiled_flex.cache_clear()
    graphs = []

    def watch(graph, example_inputs):
        graphs.append(graph)
        return graph.forward

    q, k, v, plan = inputs()
    region = torch.compile(lambda q: attention.update(q * 2, k, v, plan) + 1, backend=watch)
    with torch.no_grad():
        found, expected = region(q), attention.update(q * 2, k, v, plan) + 1
    assert torch.allclose(found, expected, atol=1e-6)
    assert graphs and not any("flex" in str(node) for g in graphs for node in g.graph.nodes)


@pytest.mark.parametrize("size", BLOCK_SIZES)
@pytest.mark.parametrize("rule", RULES)
def test_some_rows_have_no_key_in_their_first_tile(rule, size) -> None:
    """So ROWS_GUARANTEED_SAFE would make their sums not a number, though every row has a key."""
    layout = random_layout(seed=2, rows=1, length=1024)
    blocks = build_blocks(layout, RULES[rule], size)
    dense = attention.build_plan(as_torch(layout), RULES[rule])
    empty = 0
    for stage, call in zip(
        (blocks.summarize, *blocks.update), (dense.summarize, *dense.update), strict=True
    ):
        mask = call.mask[0, 0].numpy()
        # Cut blocks are walked along before whole ones.
        for query, count in enumerate(stage.kv_num_BQ[0]):
            if count:
                first = stage.kv_index_BQN[0, query, 0] * size
                rows = mask[query * size : (query + 1) * size]
                empty += int((~rows[:, first : first + size].any(axis=1)).sum())
                assert rows.any(axis=1).all()
    assert empty > 0
    assert not any("ROWS_GUARANTEED_SAFE" in name for pinned in PINNED.values() for name in pinned)


def test_unknown_devices_take_the_defaults_of_torch() -> None:
    assert device_family("NVIDIA H200") == device_family("NVIDIA H100 80GB HBM3") == "hopper"
    assert device_family("Quadro H1000") is None
    assert kernel_options(torch.device("cpu"), 64, torch.bfloat16, 128) == {}


def test_a_device_is_asked_for_its_name_once_and_takes_what_is_pinned_for_its_family(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked = []

    def name_of(device: torch.device) -> str:
        asked.append(device)
        return "NVIDIA H200" if device.index == 0 else "NVIDIA L4"

    monkeypatch.setattr(torch.cuda, "get_device_name", name_of)
    monkeypatch.setitem(PINNED, ("hopper", 64, torch.bfloat16, 128), {"fwd_BLOCK_M": 64})
    kernel_options_module._family_of.cache_clear()
    devices = [torch.device("cuda", index) for index in (0, 1)]
    for _ in range(3):
        found = [kernel_options(device, 64, torch.bfloat16, 128) for device in devices]
        assert found == [{"fwd_BLOCK_M": 64}, {}]
    assert asked == devices
    kernel_options_module._family_of.cache_clear()


def test_pinned_tiles_divide_their_blocks() -> None:
    for (_, _, _, block_size), options in PINNED.items():
        tiles = [value for name, value in options.items() if "BLOCK_" in name]
        assert not np.any(block_size % np.array(tiles, dtype=int))
