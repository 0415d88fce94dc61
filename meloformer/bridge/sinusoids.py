"""Places in a row, and times, as sines and cosines."""

import torch
from torch import Tensor

# Wave lengths reach from 2 pi to 2 pi times this.
_LONGEST = 10_000.0


def sinusoids(positions_N: Tensor, width: int) -> Tensor:
    """(N, width) float32: sines of every wave length, then cosines.

    Args:
        positions_N: any numbers.
        width: even.

    Source: Vaswani et al. 2017, section 3.5.

    >>> sinusoids(torch.zeros(1), 4).tolist()
    [[0.0, 0.0, 1.0, 1.0]]
    """
    half = width // 2
    exponents = torch.arange(half, device=positions_N.device, dtype=torch.float32) / half
    angles = positions_N.float().unsqueeze(-1) * _LONGEST**-exponents
    return torch.cat([angles.sin(), angles.cos()], dim=-1)
