"""AdamW or Muon over two groups of parameters: matrices decay, everything else does not."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from meloformer.errors import ConfigError
from meloformer.training.muon import IS_MATRIX, Muon

OptimizerName = Literal["adamw", "muon"]
# Under stage 3 each matrix is cut by itself, and no rank has the rest of it.
_MUON_STAGES = (1, 2)


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """The optimizer.

    Args:
        optimizer: adamw; or muon for the matrices of linear maps, and adamw for the rest, at the
            same learning rate. Muon needs ZeRO stage 1 or 2, and half of AdamW's memory for
            matrices.
        beta1: decay of the gradient's running mean, in AdamW.
        beta2: decay of its running square.
        muon_momentum: decay of the gradient's running mean, in Muon.
        weight_decay: per step and unit of learning rate, on matrices only.
        gradient_clipping: largest global gradient norm; 0 clips nothing.
    """

    optimizer: OptimizerName = "adamw"
    beta1: float = 0.9
    beta2: float = 0.95
    muon_momentum: float = 0.95
    weight_decay: float = 0.1
    gradient_clipping: float = 1.0

    def __post_init__(self) -> None:
        for name in ("beta1", "beta2", "muon_momentum"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed: 0 up to below 1")
        for name in ("weight_decay", "gradient_clipping"):
            if getattr(self, name) < 0:
                raise ConfigError(f"--{name} {getattr(self, name)}: allowed: 0 or more")


def check_stage(config: OptimizerConfig, zero_stage: int) -> None:
    """Refuse an optimizer that cannot work on parameters as the partitioning cuts them.

    Raises:
        ConfigError: Muon under stage 3.
    """
    if config.optimizer == "muon" and zero_stage not in _MUON_STAGES:
        raise ConfigError(
            f"--optimizer muon under ZeRO stage {zero_stage}: allowed: stages "
            f"{' and '.join(map(str, _MUON_STAGES))} (--config ds_configs/zero2.json), or "
            "--optimizer adamw"
        )


def check_same_optimizer(asked: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    """Refuse to go on with an optimizer that has no use for the state of the one before.

    Args:
        asked: settings of this start, as run.json holds them.
        known: those of the run in --output.

    Raises:
        ConfigError: the two differ.
    """
    new, old = (settings.get("optimizer", OptimizerConfig.optimizer) for settings in (asked, known))
    if new != old:
        raise ConfigError(
            f"--optimizer {new}: the run in --output was started with {old}; allowed: the same, or "
            "another --output with --init_from"
        )


def parameter_groups(model: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Matrices of linear maps with decay, marked; norms, biases and embeddings without.

    An embedding is a matrix too, but decaying it shrinks rare tokens that get no gradient; a
    head tied to the embedding counts as the embedding.
    """
    embeddings = {
        id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)
    }
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for parameter in (p for p in model.parameters() if p.requires_grad):
        is_matrix = parameter.ndim >= 2 and id(parameter) not in embeddings
        (matrices if is_matrix else others).append(parameter)
    groups = [
        {"params": matrices, "weight_decay": weight_decay, IS_MATRIX: True},
        {"params": others, "weight_decay": 0.0, IS_MATRIX: False},
    ]
    return [group for group in groups if group["params"]]


def count_by_muon(model: nn.Module, config: OptimizerConfig) -> int:
    """Elements of the trained parameters that Muon moves; 0 where all are AdamW's."""
    if config.optimizer != "muon":
        return 0
    groups = parameter_groups(model, config.weight_decay)
    return sum(p.numel() for group in groups if group[IS_MATRIX] for p in group["params"])


def build_optimizer(model: nn.Module, config: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW, or the one with Muon, for a model; the learning rate is set before every step."""
    groups, betas = parameter_groups(model, config.weight_decay), (config.beta1, config.beta2)
    if config.optimizer == "muon":
        return Muon(groups, betas=betas, momentum=config.muon_momentum)
    return torch.optim.AdamW(groups, lr=0.0, betas=betas, fused=True)
