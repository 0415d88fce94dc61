"""Rotary positions: half of the pairs turn by bar, half by the index inside the bar."""

import torch
from torch import Tensor


def rotary_angles(bar: Tensor, index: Tensor, head_width: int, base: float) -> Tensor:
    """Angle of every pair.

    Args:
        bar: (B, N) bar of the window; the prefix (-1) turns with bar 0.
        index: (B, N) index inside the bar; summaries and their keys pass 0.
        head_width: K, a multiple of 4.
        base: wave-length base.

    Returns:
        (B, 1, N, K / 2) float32: first the bar half, then the index half.

    Source: Su et al. 2021 (RoFormer), eq. 34, with two positions as in axial rotary embeddings.
    """
    quarter = head_width // 4
    exponents = torch.arange(quarter, device=bar.device, dtype=torch.float32) / quarter
    frequencies = base**-exponents
    bar_angles = bar.clamp(min=0).unsqueeze(-1) * frequencies
    index_angles = index.unsqueeze(-1) * frequencies
    return torch.cat([bar_angles, index_angles], dim=-1).unsqueeze(1)


def rotate(x_BHNK: Tensor, angles: Tensor) -> Tensor:
    """Turn the pairs (i, i + K/2) by their angle: lengths stay, only differences reach a score."""
    cos, sin = angles.cos().to(x_BHNK.dtype), angles.sin().to(x_BHNK.dtype)
    first, second = x_BHNK.chunk(2, dim=-1)
    return torch.cat([first * cos - second * sin, first * sin + second * cos], dim=-1)
