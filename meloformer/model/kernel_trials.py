"""Trials of the kernel on the device in hand: which tiles are fastest, and is FLASH right.

Neither runs by itself: what a trial finds is read by a person and pinned in kernel_options.
"""

import json
import logging
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention

from meloformer.errors import ConfigError
from meloformer.model.kernel import compiled_flex
from meloformer.model.kernel_options import Options
from meloformer.model.masks import BLOCK_SIZE

logger = logging.getLogger(__name__)

# What a sound kernel loses to bf16 stays well below this share of a tensor.
_FLASH_TOLERANCE = 0.02
_LOG_VARIABLE = "TORCHINDUCTOR_FLEX_ATTENTION_LOGGING_FILE"
_PREFIX = {"forward": "fwd_", "backward": "bwd_"}
# Keys of a tried candidate that say what it was, not how it was built.
_TUNABLE = (
    "BLOCK_M",
    "BLOCK_N",
    "BLOCK_M1",
    "BLOCK_N1",
    "BLOCK_M2",
    "BLOCK_N2",
    "num_warps",
    "num_stages",
)


def tune_tiles(
    mask: BlockMask,
    *,
    num_heads: int,
    num_kv_heads: int,
    head_width: int,
    dtype: torch.dtype,
) -> Options:
    """Let torch time its candidates for one call, forward and backward; the fastest, to be pinned.

    Compiles for minutes; forgets what was compiled before.

    Args:
        mask: a call of a plan on the device in hand, of one row and up.
        num_heads: H.
        num_kv_heads: G.
        head_width: K.
        dtype: of queries, keys and values.

    Raises:
        ConfigError: there is no CUDA device, or this torch logs no candidates.
    """
    device = mask.kv_num_blocks.device
    if device.type != "cuda":
        raise ConfigError(
            f"tiles are timed on a CUDA device; found {device.type}; move the plan there"
        )
    num_rows, num_queries, num_keys = mask.kv_num_blocks.shape[0], *mask.seq_lengths
    shapes = [(num_heads, num_queries), (num_kv_heads, num_keys), (num_kv_heads, num_keys)]
    inputs = [
        torch.randn(num_rows, *shape, head_width, device=device, dtype=dtype, requires_grad=True)
        for shape in shapes
    ]
    with tempfile.TemporaryDirectory() as folder, _candidates_logged(Path(folder) / "tried.json"):
        torch._dynamo.reset()
        out = compiled_flex(tuned=True)(*inputs, mask, num_heads != num_kv_heads, None)
        out.sum().backward()
        torch._dynamo.reset()
        log = Path(folder) / "tried.json"
        if not log.exists():
            raise ConfigError(
                f"torch {torch.__version__} wrote no candidates to {_LOG_VARIABLE}; "
                "tune with a torch that does, such as 2.11 or 2.13"
            )
        return fastest_options(json.loads(log.read_text()))


@contextmanager
def _candidates_logged(log: Path) -> Iterator[None]:
    """Torch times candidates afresh and writes them down."""
    # Imported here: where nothing was compiled before, torch has not done it.
    from torch._inductor import select_algorithm as select

    before = os.environ.get(_LOG_VARIABLE)
    os.environ[_LOG_VARIABLE] = str(log)
    select.get_flex_attention_log_filename.cache_clear()
    try:
        with torch._inductor.config.patch(force_disable_caches=True):
            yield
    finally:
        os.environ.pop(_LOG_VARIABLE)
        if before is not None:
            os.environ[_LOG_VARIABLE] = before
        select.get_flex_attention_log_filename.cache_clear()


def fastest_options(log: Sequence[Mapping[str, Any]]) -> Options:
    """The fastest candidate of each pass as options of a call.

    Args:
        log: what torch wrote: a list of passes with their candidates and times; torch 2.11 names
            the pass in the only key of an entry, later ones in `kernel_type`.
    """
    options: Options = {}
    for entry in log:
        if "kernel_type" in entry:
            kind, choices = entry["kernel_type"], entry["choices"]
        else:
            ((name, choices),) = entry.items()
            kind = "backward" if "backward" in name else "forward"
        if kind not in _PREFIX:
            continue
        best = min(choices, key=lambda choice: choice["time"])
        options |= {_PREFIX[kind] + key: best[key] for key in _TUNABLE if key in best}
    return options


def flash_is_right(device: torch.device, *, head_width: int = 128) -> bool:
    """Whether the FLASH backend agrees with float64, forward and backward, on a sparse mask.

    A wrong one has exact outputs and gradients off by orders of magnitude (flash-attention issue
    2623), so nothing but gradients can tell. Never asked for by a run.

    Args:
        device: where to try it.
        head_width: K.
    """
    if device.type != "cuda":
        return False
    length = 8 * BLOCK_SIZE
    # Near stretches and one far away: blocks that are full, cut and skipped.
    mask = create_block_mask(_near_or_far, 1, None, length, length, device=str(device))
    generator = torch.Generator().manual_seed(0)
    q, k, v, gradient = (
        torch.randn(1, heads, length, head_width, generator=generator).bfloat16()
        for heads in (4, 2, 2, 4)
    )
    places = torch.arange(length)
    allowed = _near_or_far(None, None, places[:, None], places[None, :])

    def dense(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=allowed, enable_gqa=True)

    def flash(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        compiled = torch.compile(flex_attention, dynamic=False, fullgraph=True)
        return compiled(
            q, k, v, block_mask=mask, enable_gqa=True, kernel_options={"BACKEND": "FLASH"}
        )

    try:
        found = _with_gradients(flash, [x.to(device) for x in (q, k, v)], gradient.to(device))
    except Exception as error:  # not installed, not for this device: whatever it is, the answer
        logger.info("FLASH fails on %s: %s", device, str(error).splitlines()[:1])
        return False
    expected = _with_gradients(dense, [x.double() for x in (q, k, v)], gradient.double())
    errors = [
        float((a.double().cpu() - b).norm() / b.norm())
        for a, b in zip(found, expected, strict=True)
    ]
    logger.info("FLASH on %s: errors of output and gradients %s", device, errors)
    return all(error <= _FLASH_TOLERANCE for error in errors)


def _near_or_far(b: Any, h: Any, q: Tensor, k: Tensor) -> Tensor:
    distance = q - k
    return (distance >= 0) & ((distance < 300) | ((distance >= 600) & (distance < 700)))


def _with_gradients(
    attend: Callable[[Tensor, Tensor, Tensor], Tensor], inputs: list[Tensor], gradient: Tensor
) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in inputs]
    out = attend(*leaves)
    out.backward(gradient)
    return [out.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
