"""Parts of the model by the Triton kernels of Liger, to be measured beside our own.

Nothing depends on the package: it is imported where a candidate is built. Not tried is Liger's
rotary kernel, which takes queries and keys together, turned and not normed, where ours norms and
turns each in one kernel.

Source: Hsu et al. 2024, "Liger Kernel: Efficient Triton Kernels for LLM Training"; the functional
interface of github.com/linkedin/Liger-Kernel.
"""

from types import ModuleType

import torch
from torch import Tensor, nn

from meloformer.batches.batch import IGNORE_INDEX
from meloformer.model.museformer import Layer, MuseFormer


def take_norms(model: MuseFormer) -> None:
    """Norms over the whole width by Liger; those of single heads stay."""
    kernels = _kernels()

    class LigerNorm(nn.RMSNorm):
        def forward(self, x: Tensor) -> Tensor:
            # Ours takes that of fp32 where none is given, in which the norm is computed.
            eps = torch.finfo(torch.float32).eps if self.eps is None else self.eps
            return kernels.liger_rms_norm(x, self.weight, eps, in_place=False)

    for module in model.modules():
        if type(module) is nn.RMSNorm and module.normalized_shape == (model.config.width,):
            module.__class__ = LigerNorm


def take_swiglu(model: MuseFormer) -> None:
    """SiLU times value by Liger."""
    kernels = _kernels()

    class LigerLayer(Layer):
        def add_ffn(self, x_BND: Tensor) -> Tensor:
            gate_BNF, value_BNF = self.ffn_in(self.ffn_norm(x_BND)).chunk(2, dim=-1)
            return x_BND + self.ffn_out(kernels.liger_swiglu(gate_BNF, value_BNF))

    for layer in model.layers:
        layer.__class__ = LigerLayer


def cross_entropy(logits_BTV: Tensor, targets_BT: Tensor, num_targets: float) -> Tensor:
    """Mean cross entropy of all targets by Liger, which computes the gradient on the way.

    Args:
        logits_BTV: overwritten.
        targets_BT: ids, or IGNORE_INDEX.
        num_targets: what the sum is divided by.
    """
    logits_NV, targets_N = logits_BTV.flatten(0, 1), targets_BT.flatten()
    loss = _kernels().liger_cross_entropy(
        logits_NV, targets_N, ignore_index=IGNORE_INDEX, reduction="sum"
    )
    return loss / num_targets


def _kernels() -> ModuleType:
    from liger_kernel.transformers import functional

    return functional
