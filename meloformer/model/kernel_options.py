"""Options of the compiled kernel, per device, head width, dtype and block size.

Two things that look like options to set are left alone, for reasons in torch's source (2.11 and
2.13, _inductor/kernel/flex):

- ROWS_GUARANTEED_SAFE drops the guard against rows without a key, not per call but per tile: the
  running maximum of a row whose *first visited* tile holds no key for it is minus infinity, and
  the exponential of its difference to itself is not a number. Every row of ours has a key, but
  under every rule some rows have none in their first tile.
- Tiles for blocks of 64 tokens. The backward pass leaves out a default whose tiles exceed a block
  before it looks at the options, and where that was the only candidate (bf16 on Hopper) nothing is
  left to compile. So such blocks are compiled with tuning, which brings candidates that fit.
"""

import functools
import re

import torch

from meloformer.model.masks import BLOCK_SIZE

Options = dict[str, int | bool | str]

# What a device family was found to run fastest with, by `kernel_trials.tune_tiles` on such a
# device, for (family, head width, dtype, block size). What is not listed takes torch's defaults.
PINNED: dict[tuple[str, int, torch.dtype, int], Options] = {}

# Device families by a word of their name; cards that share an entry share chip and clock class.
_FAMILY_OF_WORD = {
    "H100": "hopper",
    "H200": "hopper",
    "H800": "hopper",
    "A100": "a100",
    "A800": "a100",
}


def device_family(device_name: str) -> str | None:
    """Family that options are pinned for; None for a device nobody has measured.

    >>> device_family("NVIDIA H200"), device_family("NVIDIA GeForce RTX 4090")
    ('hopper', None)
    """
    words = re.split(r"[^A-Za-z0-9]+", device_name.upper())
    return next((_FAMILY_OF_WORD[word] for word in words if word in _FAMILY_OF_WORD), None)


def kernel_options(
    device: torch.device, head_width: int, dtype: torch.dtype, block_size: int
) -> Options:
    """Pinned options of a call; empty where torch's defaults serve.

    Args:
        device: where it runs.
        head_width: K.
        dtype: of queries, keys and values.
        block_size: tokens along each side of a block.
    """
    if device.type != "cuda":
        return {}
    family = _family_of(device)
    return PINNED.get((family, head_width, dtype, block_size), {}) if family else {}


@functools.cache
def _family_of(device: torch.device) -> str | None:
    # Asked for at every call of attention; a device keeps its name.
    return device_family(torch.cuda.get_device_name(device))


def has_default_tiles(block_size: int) -> bool:
    """Whether torch's default tiles divide the block on every device."""
    return block_size % BLOCK_SIZE == 0
