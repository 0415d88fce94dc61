"""Choose the dtype of the attention call by trying it, not by the version of torch.

Some releases of torch raise, or drift, in the bf16 backward of FlexAttention on some devices; there
the call runs in fp32 and its result returns to the model's dtype. What is known of which release
is in docs/attention_precision.md.
"""

import contextlib
import functools
import logging
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from meloformer.errors import ConfigError, MeloFormerError
from meloformer.model import attention
from meloformer.model.config import Precision
from meloformer.model.masks import BLOCK_SIZE, RULES

logger = logging.getLogger(__name__)

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]

# Rounding to bf16 costs a sound kernel less than half of this; a tenth too much is twice as large.
TOLERANCE = 0.05
# A smaller row of the output is judged against this share of the usual row.
_SMALLEST_ROW = 0.1
_MODES = ("plain", "autocast", "checkpoint")
_QUERIES_PER_KV = (1, 2)
_NUM_KV_HEADS = 2
# Two blocks along each side: one is full, two are cut by the diagonal, one is skipped.
_LENGTH = 2 * BLOCK_SIZE


@dataclass(frozen=True)
class PrecisionChoice:
    """In which dtype attention runs, and why.

    Args:
        dtype: of the attention call; None keeps that of the model.
        why: one line for the log.
        errors: what the probe found per case: the largest error of a row of the output, as a share
            of the row, or of a gradient, as a share of the larger of the row and the usual row; or
            what went wrong in words. Empty without a probe.
    """

    dtype: torch.dtype | None
    why: str
    errors: dict[str, float | str] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """The choice for a run's account of itself."""
        dtype = str(self.dtype).removeprefix("torch.") if self.dtype else None
        return {"dtype": dtype, "why": self.why, "errors": self.errors}


def choose_precision(
    precision: Precision, device: torch.device, *, head_width: int = 64
) -> PrecisionChoice:
    """Dtype of the attention call of a bf16 model.

    Args:
        precision: `bf16` keeps the model's dtype, `fp32` is the workaround, `auto` probes the
            device, once per process.
        device: where the model runs.
        head_width: K of the model.

    Raises:
        ConfigError: `auto` finds the kernel wrong in bf16 and in fp32.
    """
    if precision == "fp32":
        return PrecisionChoice(torch.float32, "attention in fp32: --attention_precision fp32")
    if precision == "bf16":
        return PrecisionChoice(
            None, "attention in the model's dtype: --attention_precision bf16, nothing is probed"
        )
    if device.type != "cuda":
        return PrecisionChoice(
            None, f"attention in the model's dtype: it is dense on {device.type}, nothing is probed"
        )
    return _probed_once(device, head_width)


def attention_dtype(
    precision: Precision, device: torch.device, *, head_width: int = 64
) -> torch.dtype | None:
    """The dtype of `choose_precision`."""
    return choose_precision(precision, device, head_width=head_width).dtype


@functools.cache
def _probed_once(device: torch.device, head_width: int) -> PrecisionChoice:
    with own_graphs():
        choice = judge(compiled_causal(device), device, head_width)
    logger.log(logging.INFO if choice.dtype is None else logging.WARNING, choice.why)
    return choice


def judge(attend: Attend, device: torch.device, head_width: int) -> PrecisionChoice:
    """Try a causal attention in bf16, forward and backward, and in fp32 where that is wrong.

    Cases: plain, under autocast, inside a checkpoint; each with one and with two query heads per
    key/value head.

    Args:
        attend: causal attention of q (B, H, T, K), k and v (B, G, T, K), which it may be handed in
            different dtypes; returns that of v.
        device: where to try it.
        head_width: K.

    Raises:
        ConfigError: it is wrong in fp32 too.
    """
    errors: dict[str, float | str] = {}
    for mode in _MODES:
        for queries_per_kv in _QUERIES_PER_KV:
            name = mode if queries_per_kv == 1 else f"{mode}, grouped heads"
            errors[name] = _error_of(
                attend, mode, device, head_width, queries_per_kv, torch.bfloat16
            )
    where = f"{_device_name(device)}, torch {torch.__version__}, head width {head_width}"
    failed = {name: error for name, error in errors.items() if not _is_right(error)}
    if not failed:
        worst = max(error for error in errors.values() if isinstance(error, float))
        why = (
            f"attention in bf16: forward and backward agree with float64 on {where}; largest error "
            f"of a row {worst:.2%} over {len(errors)} cases ({'; '.join(errors)})"
        )
        return PrecisionChoice(None, why, errors)
    found = "; ".join(f"{name}: {_in_words(error)}" for name, error in failed.items())
    in_fp32 = _error_of(attend, "plain", device, head_width, 1, torch.float32)
    if not _is_right(in_fp32):
        raise ConfigError(
            f"attention on {where} is wrong in bf16 ({found}) and in fp32 "
            f"({_in_words(in_fp32)}); allowed: errors under {TOLERANCE:.0%} of a row; "
            "train with a torch that supports this device, or with --device cpu"
        )
    why = (
        f"attention in fp32, slower and with more memory: bf16 fails on {where} in {len(failed)} "
        f"of {len(errors)} cases ({found}); --attention_precision bf16 would keep it"
    )
    return PrecisionChoice(torch.float32, why, errors)


def compiled_causal(device: torch.device) -> Attend:
    """The model's own call, with its kernel and its casts, under a causal mask."""
    from torch.nn.attention.flex_attention import create_block_mask

    mask = create_block_mask(
        lambda b, h, q, k: k <= q, None, None, _LENGTH, _LENGTH, device=str(device)
    )
    call = attention.CallPlan(mask)
    plan = attention.AttentionPlan(call, (call,), RULES["full"])
    return functools.partial(attention.update, plan=plan)


@contextlib.contextmanager
def own_graphs() -> Iterator[None]:
    """What is compiled inside counts against no graph budget, and is forgotten afterwards."""
    counters = torch._dynamo.utils.counters["stats"]
    before = counters["unique_graphs"]
    cases = len(_MODES) * len(_QUERIES_PER_KV)
    torch._dynamo.reset()
    try:
        with torch._dynamo.config.patch(recompile_limit=2 * cases):
            yield
    finally:
        torch._dynamo.reset()
        counters["unique_graphs"] = before


def _is_right(error: float | str) -> bool:
    return isinstance(error, float) and error <= TOLERANCE


def _in_words(error: float | str) -> str:
    return error if isinstance(error, str) else f"error of a row {error:.2%}"


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def _error_of(
    attend: Attend,
    mode: str,
    device: torch.device,
    head_width: int,
    queries_per_kv: int,
    dtype: torch.dtype,
) -> float | str:
    """Largest error of one case against float64, or what went wrong."""
    generator = torch.Generator().manual_seed(0)

    def draw(num_heads: int) -> Tensor:
        shape = (1, num_heads, _LENGTH, head_width)
        # Rounded before both see it: what is judged is the arithmetic, not the input.
        return torch.randn(shape, generator=generator).bfloat16()

    num_heads = _NUM_KV_HEADS * queries_per_kv
    q, k, v, gradient = (draw(n) for n in (num_heads, _NUM_KV_HEADS, _NUM_KV_HEADS, num_heads))
    expected = _forward_backward(
        functools.partial(F.scaled_dot_product_attention, is_causal=True, enable_gqa=True),
        [x.to(torch.float64, copy=True).requires_grad_() for x in (q, k, v)],
        gradient.double(),
    )
    # Under autocast the weights, and so what norms and rotary hand over, are fp32.
    leaf_dtype = torch.float32 if mode == "autocast" else dtype
    leaves = [x.to(device, leaf_dtype, copy=True).requires_grad_() for x in (q, k, v)]
    try:
        found = _forward_backward(
            _in_mode(attend, mode, device, dtype), leaves, gradient.to(device, dtype)
        )
    except (torch.OutOfMemoryError, MeloFormerError):
        raise  # says nothing about the arithmetic
    except Exception as error:  # whatever else a kernel raises is the answer of the probe
        return f"{type(error).__name__}: {_first_line(error)}"
    if found[0].dtype != dtype:
        return f"returned {found[0].dtype}, expected {dtype}"
    # Few keys all but cancel in the gradients of early rows, and what sound kernels round there is
    # as large as the row: gradients add up in the weights, so the usual row is their measure.
    smallest_rows = (_SMALLEST_ROW, 1.0, 1.0, 1.0)
    errors = [
        _largest_error(a.cpu().double(), b, smallest_row)
        for a, b, smallest_row in zip(found, expected, smallest_rows, strict=True)
    ]
    return max(errors) if all(map(math.isfinite, errors)) else "not finite"


def _in_mode(attend: Attend, mode: str, device: torch.device, dtype: torch.dtype) -> Attend:
    if mode == "checkpoint":
        return functools.partial(checkpoint, attend, use_reentrant=False)
    if mode == "plain":
        return attend

    def under_autocast(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        with torch.autocast(device.type, dtype):
            return attend(q, k, v.to(dtype))  # as a projection hands v over

    return under_autocast


def _forward_backward(attend: Attend, leaves: list[Tensor], gradient: Tensor) -> list[Tensor]:
    """Output and gradients of q, k and v."""
    out = attend(*leaves)
    out.backward(gradient.to(out.dtype))
    # An input that the kernel has lost on the way has no gradient: that is wrong, not absent.
    gradients = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return [out.detach(), *gradients]


def _largest_error(found: Tensor, expected: Tensor, smallest_row: float) -> float:
    """Of the rows of a tensor, the largest error as a share of the row.

    Sizes of rows differ tenfold under a causal mask, so a share of the largest entry would let
    short rows be wholly wrong.

    Args:
        found: (B, H, T, K).
        expected: the same in exact arithmetic.
        smallest_row: rows below this share of the usual one are measured by that share.
    """
    size = expected.norm(dim=-1)
    size = size.clamp(min=smallest_row * float(size.square().mean().sqrt()))
    return float(((found - expected).norm(dim=-1) / size).max())


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else "no message"
