"""The compiled block-sparse kernel: its mask function, and the refusals that keep it compiled.

FlexAttention has a dense twin that it falls back to without a word: when it is called uncompiled,
when torch gives up compiling, inside a region that another backend compiles, under a checkpoint
policy that looks at single operations. There a row of 16k tokens takes as many times the memory
and the time as it has blocks. Each of these roads ends in an error here.
"""

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.utils import _python_dispatch, checkpoint

from meloformer.errors import ConfigError
from meloformer.model.kernel_options import has_default_tiles, kernel_options
from meloformer.model.masks import KernelLabels, StageBlocks

MaskFunction = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]


def mask_function(labels: KernelLabels) -> MaskFunction:
    """Does query q read key k, in the fewest operations on integers.

    Loads and operations for one pair (query loads are per row of a tile, key loads per column):

    | call | loads of q | of k | operations |
    |---|---|---|---|
    | SUMMARIZE, `full` | 0 | 2 | 3 |
    | near bars and one more distance | 1 | 3 | 5 |
    | same instrument | 2 | 3 | 5 |
    | both (`hid`) | 3 | 4 | 7 |
    | many distances (`museformer`) | 1 | 3 | 6 |

    Half of them are ands and ors of comparisons.
    """
    first_BN, last_BN, time_BQ = labels.first_BN, labels.last_BN, labels.time_BQ
    bit_BQ, bits_BN, codes = labels.bit_BQ, labels.bits_BN, labels.codes

    # The closure holds tensors alone: a captured Python number would compile anew at each value.
    def reads(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        time = q if time_BQ is None else time_BQ[b, q]
        allowed = time <= last_BN[b, k]
        if bit_BQ is not None:
            allowed = allowed & ((bit_BQ[b, q] & bits_BN[b, k]) != 0)
        for code_BQ, code_BN in codes:
            allowed = allowed | (code_BQ[b, q] == code_BN[b, k])
        return (first_BN[b, k] <= time) & allowed

    return reads


def block_mask(stage: StageBlocks, num_queries: int, block_size: int) -> BlockMask:
    """The plan of one call as the kernel takes it; nothing is computed."""
    return BlockMask(
        seq_lengths=(num_queries, stage.labels.first_BN.shape[1]),
        kv_num_blocks=stage.kv_num_BQ.unsqueeze(1),
        kv_indices=stage.kv_index_BQN.unsqueeze(1),
        full_kv_num_blocks=stage.full_num_BQ.unsqueeze(1),
        full_kv_indices=stage.full_index_BQN.unsqueeze(1),
        q_num_blocks=stage.q_num_BN.unsqueeze(1),
        q_indices=stage.q_index_BNQ.unsqueeze(1),
        full_q_num_blocks=stage.full_q_num_BN.unsqueeze(1),
        full_q_indices=stage.full_q_index_BNQ.unsqueeze(1),
        BLOCK_SIZE=(block_size, block_size),
        mask_mod=mask_function(stage.labels),
    )


def attend_blocks(q_BHQK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, mask: BlockMask) -> Tensor:
    """Block-sparse attention by the compiled kernel; (B, H, Q, K).

    Args:
        q_BHQK: queries, of the dtype that the kernel shall compute in, like the other two.
        k_BGNK: keys of G = H / n heads.
        v_BGNK: values.
        mask: which pairs count.

    Raises:
        ConfigError: the call would be computed densely, or cannot be: see the module.
    """
    return _outside_regions()(q_BHQK, k_BGNK, v_BGNK, mask)


@functools.cache
def _outside_regions() -> Callable[..., Tensor]:
    # A region that somebody else compiles ends here and goes on after it: another backend than
    # ours would compute this call densely. Not a decorator, which would load the compiler (two
    # seconds) wherever a model is imported.
    return torch.compiler.disable(_attend_blocks, recursive=False)


def _attend_blocks(q_BHQK: Tensor, k_BGNK: Tensor, v_BGNK: Tensor, mask: BlockMask) -> Tensor:
    if q_BHQK.device.type == "cpu" and q_BHQK.requires_grad:
        raise ConfigError(
            "flex attention has no backward on the CPU; use the dense backend, or no_grad"
        )
    _refuse_operation_policies()
    block_size = mask.BLOCK_SIZE[0]
    options = kernel_options(q_BHQK.device, q_BHQK.shape[-1], q_BHQK.dtype, block_size)
    kernel = compiled_flex(tuned=q_BHQK.device.type == "cuda" and not has_default_tiles(block_size))
    return kernel(q_BHQK, k_BGNK, v_BGNK, mask, q_BHQK.shape[1] != k_BGNK.shape[1], options or None)


@functools.cache
def compiled_flex(*, tuned: bool = False) -> Callable[..., Tensor]:
    """The one compiled kernel of the process.

    Static shapes and whole graphs: a shape beyond the limit of graphs raises instead of running
    densely.

    Args:
        tuned: let torch time the tiles that fit when it compiles.
    """
    options: dict[str, Any] | None = {"max_autotune": True} if tuned else None
    return torch.compile(_flex, dynamic=False, fullgraph=True, options=options)


def _flex(
    q: Tensor, k: Tensor, v: Tensor, mask: BlockMask, is_grouped: bool, options: Any
) -> Tensor:
    if not torch.compiler.is_compiling():
        # Reached when torch gave up compiling, or was told to; torch itself warns once and goes on.
        raise ConfigError(
            "attention was called uncompiled and would be computed densely; found torch.compile "
            "switched off (TORCH_COMPILE_DISABLE, torch.compiler.set_stance, suppress_errors or a "
            "dispatch mode); switch it on, or take the dense backend on purpose"
        )
    return flex_attention(q, k, v, block_mask=mask, enable_gqa=is_grouped, kernel_options=options)


def _refuse_operation_policies() -> None:
    """Selective checkpointing by operation sees the dense twin's operations, not the kernel."""
    policies = (checkpoint._CachingTorchDispatchMode, checkpoint._CachedTorchDispatchMode)
    if any(isinstance(m, policies) for m in _python_dispatch._get_current_dispatch_mode_stack()):
        raise ConfigError(
            "attention was called under a checkpoint policy for single operations "
            "(create_selective_checkpoint_contexts), where it would be computed densely; "
            "allowed: whole functions; use --checkpointing ffn or --checkpointing layer"
        )
