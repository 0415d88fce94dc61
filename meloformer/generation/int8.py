"""Weights of 8 bits on a CPU: less memory to read for each token, and products of whole numbers.

Each linear map of the layers keeps whole numbers with one scale per output; what it is given is
rounded to 8 bits, too, anew at every call. Embeddings, norms and the head stay as they are.
"""

import warnings

import torch
from torch import Tensor, nn

from meloformer.errors import ConfigError
from meloformer.model.museformer import MuseFormer

_LARGEST = 127


class Int8Linear(nn.Module):
    """A linear map without bias, with weights of 8 bits.

    Args:
        linear: in float32, on the CPU.
    """

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach()
        largest = weight.abs().amax(dim=1).clamp(min=torch.finfo(weight.dtype).tiny)
        zero_points = torch.zeros(len(weight), dtype=torch.int64)
        scales = (largest / _LARGEST).double()
        with warnings.catch_warnings():
            # Torch means to give these tensors up; nothing else of it is faster on a CPU yet.
            warnings.filterwarnings("ignore", message=".*quantize_per_channel.*deprecated")
            whole = torch.quantize_per_channel(weight, scales, zero_points, 0, torch.qint8)
        self._packed = torch.ops.quantized.linear_prepack(whole, None)

    def forward(self, x: Tensor) -> Tensor:
        """What the linear map gives, but for rounding."""
        # 7 bits of what comes in: processors without VNNI add up pairs of products in 16 bits.
        result: Tensor = torch.ops.quantized.linear_dynamic(x, self._packed, True)
        return result


def use_int8_weights(model: MuseFormer) -> None:
    """Let the layers of a model compute with weights of 8 bits from now on.

    Raises:
        ConfigError: the model is not on a CPU in float32, or torch has no such products here.
    """
    weight = model.token_embedding.weight
    if weight.device.type != "cpu" or weight.dtype != torch.float32:
        found = f"{str(weight.dtype).removeprefix('torch.')} on {weight.device.type}"
        raise ConfigError(
            f"--weights_dtype int8: found a model in {found}; allowed: --device cpu with weights "
            "in float32"
        )
    if torch.backends.quantized.engine == "none":
        raise ConfigError(
            "--weights_dtype int8: torch has no products of 8 bits on this processor; allowed: "
            "--weights_dtype saved"
        )
    for layer in model.layers:
        for name, module in list(layer.named_children()):
            if type(module) is nn.Linear:
                setattr(layer, name, Int8Linear(module))
