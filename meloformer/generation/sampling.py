"""From logits to one token a row: temperature, top-k, top-p, under a grammar mask."""

from dataclasses import dataclass

import torch
from torch import Tensor

from meloformer.errors import ConfigError


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """How bold the choice of a token is.

    Args:
        temperature: divides the logits; 0 takes the likeliest token.
        top_k: only so many of the likeliest tokens; 0 keeps all.
        top_p: only the likeliest tokens that together reach this probability (nucleus).
    """

    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 0.95

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise ConfigError(f"--temperature {self.temperature}: allowed are 0 and above")
        if self.top_k < 0:
            raise ConfigError(f"--top_k {self.top_k}: allowed are 0 (all) and above")
        if not 0 < self.top_p <= 1:
            raise ConfigError(f"--top_p {self.top_p}: allowed is 0 < top_p <= 1")


def sample_tokens(
    logits_BV: Tensor, allowed_BV: Tensor, config: SamplingConfig, uniform_B: Tensor
) -> Tensor:
    """Draw one allowed token a row.

    Args:
        logits_BV: scores of the next token.
        allowed_BV: bool; at least one True in every row.
        config: temperature and cut-offs, applied to the allowed tokens alone.
        uniform_B: a draw from [0, 1) for each row, on the CPU; the row's token follows from it.

    Returns:
        (B,) int64 on the CPU.

    Source: nucleus sampling, Holtzman et al. 2020, section 3.1.
    """
    logits_BV = logits_BV.float().cpu().masked_fill(~allowed_BV, -torch.inf)
    if config.temperature == 0:
        return logits_BV.argmax(dim=-1)
    probabilities_BV = torch.softmax(logits_BV / config.temperature, dim=-1)
    sorted_BV, order_BV = probabilities_BV.sort(dim=-1, descending=True)
    # A token stays while the likelier ones have not reached top_p: the first always does.
    before_BV = sorted_BV.cumsum(dim=-1) - sorted_BV
    keep_BV = before_BV < config.top_p
    keep_BV[:, 0] = True
    if config.top_k:
        keep_BV[:, config.top_k :] = False
    below_BV = (sorted_BV * keep_BV).double().cumsum(dim=-1)
    # A token without probability ends where the one before it ends, and is never the first beyond.
    target_B1 = uniform_B.double()[:, None] * below_BV[:, -1:]
    choice_B1 = torch.searchsorted(below_BV, target_B1, right=True)
    return order_BV.gather(1, choice_B1)[:, 0]
