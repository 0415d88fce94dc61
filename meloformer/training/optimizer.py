"""AdamW over two groups of parameters: matrices decay, everything else does not."""

from dataclasses import dataclass

import torch
from torch import nn

from meloformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """AdamW.

    Args:
        beta1: decay of the gradient's running mean.
        beta2: decay of its running square.
        weight_decay: per step and unit of learning rate, on matrices only.
        gradient_clipping: largest global gradient norm; 0 clips nothing.
    """

    beta1: float = 0.9
    beta2: float = 0.95
    weight_decay: float = 0.1
    gradient_clipping: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed: 0 up to below 1")
        for name in ("weight_decay", "gradient_clipping"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed: 0 or more")


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Matrices of linear maps with decay; norms, biases and embeddings without.

    An embedding is a matrix too, but decaying it shrinks rare tokens that get no gradient; a
    head tied to the embedding counts as the embedding.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    decayed: list[nn.Parameter] = []
    kept: list[nn.Parameter] = []
    for parameter in model.parameters():
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (decayed if is_matrix else kept).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": weight_decay},
        {"params": kept, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW for a model; the learning rate is set before every step."""
    return torch.optim.AdamW(
        parameter_groups(model, config.weight_decay),
        lr=0.0,
        betas=(config.beta1, config.beta2),
        fused=True,
    )
