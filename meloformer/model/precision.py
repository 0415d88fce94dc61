"""Choose the dtype of the attention call by trying it, not by the version of torch.

PyTorch 2.5-2.7 raise or drift in the bf16 backward of FlexAttention on some devices; there the
call runs in fp32 and its result returns to the model's dtype.
"""

import functools
import logging

import torch
import torch.nn.functional as F
from torch import Tensor

from meloformer.model.attention import compiled_flex
from meloformer.model.config import Precision
from meloformer.model.masks import BLOCK_SIZE

logger = logging.getLogger(__name__)

# bf16 keeps 8 bits: errors of a sound kernel stay well below this share of the largest entry.
_TOLERANCE = 0.05


def attention_dtype(precision: Precision, device: torch.device) -> torch.dtype | None:
    """Dtype of the attention call; None keeps that of the model.

    Args:
        precision: `bf16` keeps the model's dtype, `fp32` is the workaround, `auto` probes once.
        device: where the model runs.
    """
    if precision == "fp32":
        return torch.float32
    if precision == "auto" and device.type == "cuda" and not bf16_is_right(device.type):
        return torch.float32
    return None


@functools.cache
def bf16_is_right(device_type: str) -> bool:
    """Forward and backward of the bf16 kernel against float64 on a causal toy."""
    generator = torch.Generator().manual_seed(0)
    shape = (1, 2, 2 * BLOCK_SIZE, 64)
    q, k, v, gradient = (torch.randn(shape, generator=generator) for _ in range(4))
    expected = _run(
        functools.partial(F.scaled_dot_product_attention, is_causal=True),
        [x.double() for x in (q, k, v, gradient)],
    )
    inputs = [x.to(device_type, torch.bfloat16) for x in (q, k, v, gradient)]
    try:
        found = _run(_causal_flex(device_type), inputs)
    except (RuntimeError, NotImplementedError) as error:
        logger.warning("attention in bf16 fails on %s (%s): fp32 it is", device_type, error)
        return False
    errors = [
        ((a.double().cpu() - b).abs().max() / b.abs().max()).item()
        for a, b in zip(found, expected, strict=True)
    ]
    logger.info("attention in bf16 on %s: relative errors %s", device_type, errors)
    return max(errors) < _TOLERANCE


def _causal_flex(device_type: str):
    from torch.nn.attention.flex_attention import create_block_mask

    length = 2 * BLOCK_SIZE
    mask = create_block_mask(
        lambda b, h, q, k: k <= q, None, None, length, length, device=device_type
    )
    return functools.partial(compiled_flex(), block_mask=mask)


def _run(attend, tensors: list[Tensor]) -> list[Tensor]:
    *inputs, gradient = tensors
    inputs = [x.requires_grad_() for x in inputs]
    out = attend(*inputs)
    out.backward(gradient)
    return [out.detach()] + [x.grad for x in inputs]
