"""FlexAttention on the device in hand: does it compile there, and is it right, both ways?"""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.benchmarks.workload import typical_batch
from meloformer.model import attention
from meloformer.model.attention import build_plan
from meloformer.model.masks import rule_of
from meloformer.model.precision import TOLERANCE

# Two packed pieces: blocks between them are skipped, blocks inside are cut by the rule.
_TOKENS, _TOKENS_PER_PIECE = 512, 256
_RULE = "museformer"
_NUM_HEADS, _HEAD_WIDTH = 2, 64


@dataclass(frozen=True, kw_only=True)
class FlexTrial:
    """What came of it.

    Args:
        seconds: of the first call, compiling included.
        error: largest error of the output or a gradient as a share of that tensor; None where
            nothing came back.
        failure: what was raised, in one line; None where nothing was.
        has_backward: gradients were tried too.
    """

    seconds: float
    error: float | None
    failure: str | None
    has_backward: bool

    @property
    def is_right(self) -> bool:
        """Whether it ran, and agrees with dense attention in float64."""
        return self.error is not None and self.error <= TOLERANCE

    def __str__(self) -> str:
        if self.error is None:
            return f"fails: {self.failure}"
        what = "forward and backward" if self.has_backward else "forward only"
        words = "right" if self.is_right else "WRONG"
        return f"{words}, {what}: error {self.error:.2%}, {self.seconds:.0f} s to compile"


def try_flex(device: torch.device) -> FlexTrial:
    """Run the model's own block-sparse attention on one small packed row, and judge it.

    Args:
        device: a CUDA device in bf16, forward and backward; the CPU in fp32, where the kernel has
            no backward.
    """
    has_backward = device.type == "cuda"
    dtype = torch.bfloat16 if has_backward else torch.float32
    rule = rule_of(_RULE)
    batch = typical_batch(_TOKENS, _TOKENS_PER_PIECE, rule)
    num_keys = _TOKENS + batch.layout.piece_BS.shape[1]
    generator = torch.Generator().manual_seed(0)
    # Rounded before both see it: what is judged is the arithmetic, not the input.
    q, k, v, gradient = (
        torch.randn(1, _NUM_HEADS, length, _HEAD_WIDTH, generator=generator).to(dtype)
        for length in (_TOKENS, num_keys, num_keys, _TOKENS)
    )
    expected = _attend(build_plan(batch.layout, rule), [x.double() for x in (q, k, v, gradient)])
    began = time.perf_counter()
    try:
        here = batch.to(device)
        plan = build_plan(here.layout, rule, "flex", here.blocks)
        inputs = [x.to(device) for x in (q, k, v, gradient)]
        found = [x.double().cpu() for x in _attend(plan, inputs, has_backward=has_backward)]
    except Exception as error:  # whatever a compiler raises is the answer of the trial
        lines = str(error).strip().splitlines() or ["no message"]
        failure = f"{type(error).__name__}: {lines[0]}"
        return FlexTrial(
            seconds=time.perf_counter() - began,
            error=None,
            failure=failure,
            has_backward=has_backward,
        )
    seconds = time.perf_counter() - began
    expected = expected[: len(found)]  # the output alone where there is no backward
    errors = [float((a - b).norm() / b.norm()) for a, b in zip(found, expected, strict=True)]
    return FlexTrial(
        seconds=seconds, error=_largest(errors), failure=None, has_backward=has_backward
    )


def _attend(
    plan: attention.AttentionPlan, tensors: list[Tensor], *, has_backward: bool = True
) -> list[Tensor]:
    """Output of UPDATE, and gradients of q, k and v."""
    q, k, v, gradient = tensors
    if not has_backward:
        with torch.no_grad():
            return [attention.update(q, k, v, plan)]
    q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
    out = attention.update(q, k, v, plan)
    gradients = torch.autograd.grad(out, (q, k, v), gradient)
    return [out.detach(), *gradients]


def _largest(errors: list[float]) -> float:
    """The largest; what is no number is larger than any.

    >>> _largest([0.1, float("nan"), 0.2])
    nan
    """
    return max(errors, key=lambda error: math.inf if math.isnan(error) else error)
